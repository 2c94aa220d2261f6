"""Update of an engine's weights to a new version."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from rollout.weights.manifest import Manifest, describe_tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdate:
    """Tensors of a new version with their manifest. `inline` passes them on without a copy; `collective` broadcasts
    them.

    The sender must not change the tensors until every receiver has staged them. `verify` detects it if the sender
    did.
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
        """True if the sender quantized the weights (`rollout.models.int8`)."""
        return self.manifest.is_int8


def make_update(version: int, named_weights: Iterable[tuple[str, torch.Tensor]]) -> WeightUpdate:
    """Build the update to `version`, with the digests of the current values of `named_weights`.

    Raises:
        ValueError: a name occurs twice.
    """
    weights = list(named_weights)
    manifest = Manifest(
        version=version, tensors=tuple(describe_tensor(name, tensor) for name, tensor in weights)
    )
    return WeightUpdate(version=version, manifest=manifest, tensors=dict(weights))
