"""L6: recipes, stages, resuming."""
