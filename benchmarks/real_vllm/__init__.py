"""What the comparisons on real vLLM servers share: the servers, the front doors, the load and the prompts."""
