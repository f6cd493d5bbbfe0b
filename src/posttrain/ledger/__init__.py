"""L1: the store of result rows."""
