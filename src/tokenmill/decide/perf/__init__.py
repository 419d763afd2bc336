"""How long a step takes, behind ``StepTimeModel``. It does not know who asks."""
