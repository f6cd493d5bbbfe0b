"""L1: statistics, pure functions of numbers."""
