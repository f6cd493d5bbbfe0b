"""L2: finding, loading and adapting models."""
