"""L5, lever 1: what goes in."""
