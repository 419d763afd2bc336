"""TensorRT-LLM as an engine: ``trtllm-serve``, unmodified, launched or attached to."""
