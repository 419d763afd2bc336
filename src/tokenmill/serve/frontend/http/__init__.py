"""A small HTTP/1.1 server layer: bytes in, requests out, answers back. It knows nothing of what is asked."""
