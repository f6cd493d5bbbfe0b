"""L5, lever 3: weights from demonstrations."""
