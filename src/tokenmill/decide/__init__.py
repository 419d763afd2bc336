"""Decisions as plain objects: facts in, instructions out. No I/O, no clock, no global."""
