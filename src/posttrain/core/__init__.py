"""L0: types, protocols, seeds, specs, configuration, errors."""
