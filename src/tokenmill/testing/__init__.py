"""What ships for tests, ours and users': nothing in production imports it."""
