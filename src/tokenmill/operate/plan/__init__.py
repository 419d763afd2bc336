"""``tokenmill plan``: which stage on which GPUs, how many, and what it will cost. Knows no engines and no
processes."""
