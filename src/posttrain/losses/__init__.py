"""L1: losses and estimators, pure functions of tensors."""
