"""What hardware there is and what it costs: GPU catalogue, inventory, links. It does no I/O."""
