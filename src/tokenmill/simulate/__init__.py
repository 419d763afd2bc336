"""A factory on a virtual clock: the very objects that serve, driven by a trace. No sockets, no processes."""
