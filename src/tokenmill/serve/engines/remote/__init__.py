"""Engines that are servers of their own: launching them, speaking HTTP with them, reading their metrics."""
