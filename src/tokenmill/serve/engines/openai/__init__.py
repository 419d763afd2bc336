"""Any server that speaks OpenAI's API as an engine: text in, text out, attached to and never launched."""
