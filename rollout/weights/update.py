"""A new version of the weights on its way from the trainer to its engines."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from rollout.weights.manifest import Manifest, describe_tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdate:
    """The tensors themselves: `inline` hands them over uncopied, `collective` broadcasts them.

    The sender leaves them unchanged until every receiver has staged them; `verify` finds out if it did not.
    """

    version: int
    manifest: Manifest
    tensors: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        if self.version != self.manifest.version:
            raise ValueError(
                f"version {self.version} of the update must be its manifest's, {self.manifest.version}"
            )

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def is_int8(self) -> bool:
        """Whether the sender quantized it (`rollout.models.int8`)."""
        return self.manifest.is_int8


def make_update(version: int, named_weights: Iterable[tuple[str, torch.Tensor]]) -> WeightUpdate:
    """The update to `version`, with the digests of `named_weights` as they are now.

    Raises:
        ValueError: a name comes twice.
    """
    weights = list(named_weights)
    manifest = Manifest(
        version=version, tensors=tuple(describe_tensor(name, tensor) for name, tensor in weights)
    )
    return WeightUpdate(version=version, manifest=manifest, tensors=dict(weights))
