"""Benchmarks: each prints what it measured and on what, and compares in the same run."""
