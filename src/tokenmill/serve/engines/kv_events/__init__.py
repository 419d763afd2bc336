"""KV events of engines that are servers of their own: read from ZMQ, put in order, told in our names."""
