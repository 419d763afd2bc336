"""The worker process: one engine, one role. It knows no HTTP and no routing."""
