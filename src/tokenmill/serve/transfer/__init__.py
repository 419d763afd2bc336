"""Moving KV blocks between workers. It does not know who asked or what a token is."""
