"""The factory file: schema, loading, validation."""
