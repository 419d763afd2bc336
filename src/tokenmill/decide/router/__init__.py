"""Which worker gets a request. Plain objects: facts in, a decision with reasons out."""
