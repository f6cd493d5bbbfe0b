"""L3: everything that generates."""
