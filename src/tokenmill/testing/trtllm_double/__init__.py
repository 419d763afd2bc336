"""A small server that speaks as ``trtllm-serve`` does and checks everything it is asked, for tests without a
GPU.

Written from TensorRT-LLM's public source, never compared with a running one. Its tokens follow from every
token before them and from the sampling parameters, so that a wrong prompt, cache or parameter shows.
"""
