"""L4: scoring texts."""
