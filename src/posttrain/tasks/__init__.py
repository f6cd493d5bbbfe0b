"""L2: what is asked and how it is graded."""
