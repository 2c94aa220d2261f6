"""Files of a run: its directory, checkpoints, saved config and served files; and the signals that stop a run."""
