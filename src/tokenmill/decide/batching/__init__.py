"""What runs in an engine's next step: block pool, prefix cache and step scheduler. No torch, no I/O."""
