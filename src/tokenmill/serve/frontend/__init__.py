"""The HTTP front door: OpenAI's API over our own small HTTP layer. It knows no model code."""
