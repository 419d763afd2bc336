"""A KV connector that vLLM loads by its path: hands the KV cache over through our own transfer drivers."""
