"""Bringing a factory up on this machine. It does not know engines' insides."""
