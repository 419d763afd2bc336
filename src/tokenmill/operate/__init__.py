"""What runs a factory: deployment, control loops, console, load generator."""
