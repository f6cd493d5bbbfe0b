"""L3: the training step and loop that every trainer shares."""
