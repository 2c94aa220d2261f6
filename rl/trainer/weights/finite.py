"""Refuses to publish weights that have overflowed."""

from collections.abc import Mapping

import torch

from rollout.core import NotFiniteError
from rollout.models.tensor_files import is_finite

__all__ = ["check_finite"]


def check_finite(weights: Mapping[str, torch.Tensor], *, version: int) -> None:
    """Look at every weight of a version before others get it; takes about 20 ms for 135 M parameters.

    Raises:
        NotFiniteError: names the first tensor that holds NaN or infinite values.
    """
    for name, tensor in weights.items():
        if not is_finite(tensor):
            raise NotFiniteError(
                f"{name} of version {version} holds NaN or infinite values, so the version is not kept; lower "
                "trainer.learning_rate and go on from an earlier one"
            )
