"""W&B run that shows a training run: its identity, its metrics and its tables."""
