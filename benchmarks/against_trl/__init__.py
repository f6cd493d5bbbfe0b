"""Training beside TRL's: the parts of `train_vs_trl.py`."""
