"""Paceline's operations on tensors: one op per file, importable on any machine."""

# `rollout` looks for it: Hugging Face publishes another package of this name. Define no `__version__` here:
# transformers would read it as that package's.
IS_PACELINE = True
