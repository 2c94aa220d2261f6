"""Trains the policies that `rollout` runs."""

import rollout  # noqa: F401  it refuses another package named `kernels`, before anything else loads
