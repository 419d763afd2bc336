"""The embedded engine: PyTorch steps over a paged KV cache, on CPU or CUDA. Needs the extra ``torch``."""
