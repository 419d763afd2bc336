"""Tokenmill: an inference factory for large language models.

Prefill and decode run on workers of their own, the KV cache moves between them, and each stage is
scaled, placed and priced on its own. See ``docs/architecture.md`` for the house plan.
"""

__version__ = "0.1.0"
