"""L5, lever 2: how much and how the model thinks."""
