"""Environments: what answers a model inside an episode. One file each; `build.py` makes them from their specs."""
