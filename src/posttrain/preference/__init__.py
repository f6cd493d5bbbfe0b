"""L5, lever 4: weights from judgements."""
