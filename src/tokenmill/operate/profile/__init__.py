"""``tokenmill profile``: measure a running engine's step times and write them down for plans and batching."""
