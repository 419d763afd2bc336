"""vLLM as an engine: the real server, unmodified, launched or attached to."""
