"""OpenAI's API: bodies in, checked requests out; tokens in, OpenAI's JSON out. No sockets, no workers."""
