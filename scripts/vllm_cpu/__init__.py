"""vLLM for the CPU in an environment of its own: for tests and benchmarks against the real engine."""
