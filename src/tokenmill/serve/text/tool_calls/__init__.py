"""Tool calls out of the text that a model writes: text pieces in, content and calls out. No I/O."""
