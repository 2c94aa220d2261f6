"""Manifest of one version of the weights: names, shapes, dtypes, and digests of the bytes."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import xxhash

MANIFEST = "manifest.json"
"""Name of the manifest's file in the directory of a published version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    name: str  # name of the tensor in a Hugging Face checkpoint
    shape: tuple[int, ...]
    dtype: str  # for example "bfloat16"
    digest: str = ""  # "xxh3_128:<hex>" of the contiguous bytes; empty if not known yet

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSpec:
    name: str  # relative to the version's directory
    size: int  # bytes
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    version: int
    tensors: tuple[TensorSpec, ...]
    files: tuple[FileSpec, ...] = ()
    """Files of a directory in the store; empty in an update that is sent to engines."""

    def __post_init__(self) -> None:
        counts = Counter(spec.name for spec in (*self.tensors, *self.files))
        repeated = [name for name, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(
                f"a manifest must name each tensor and file once, got twice: {repeated}"
            )

    @property
    def has_digests(self) -> bool:
        """True if all digests are known, so that weights can be verified; a layout from `describe_layout` has
        none."""
        return all(spec.digest for spec in self.tensors)

    @property
    def is_int8(self) -> bool:
        """True if the sender quantized the weights (`rollout.models.int8`)."""
        return any(spec.dtype == "int8" for spec in self.tensors)

    @property
    def digest(self) -> str:
        """Digest over all tensors. It equals `WeightReceiver.digest()` of a receiver with these weights."""
        if not self.has_digests:
            raise RuntimeError(f"the digests of version {self.version} are not known yet")
        return combine_digests({spec.name: spec.digest for spec in self.tensors})

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Build a manifest from the output of `to_json`.

        Raises:
            ValueError: the text is not the JSON of a manifest.
        """
        content: dict[str, Any] = json.loads(text)
        try:
            return cls(
                version=content["version"],
                tensors=tuple(
                    TensorSpec(**spec | {"shape": tuple(spec["shape"])})
                    for spec in content["tensors"]
                ),
                files=tuple(FileSpec(**spec) for spec in content["files"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the JSON of a weight manifest: {error!r}") from error


def describe_layout(version: int, named_weights: Iterable[tuple[str, torch.Tensor]]) -> Manifest:
    """Return a manifest without digests, for weights that have not been gathered yet.

    Args:
        version: version of the weights.
        named_weights: tensors whose shapes and dtypes are read; their values are not, so they may be on `meta`.
    """
    return Manifest(
        version=version,
        tensors=tuple(
            TensorSpec(name=name, shape=tuple(tensor.shape), dtype=dtype_name(tensor.dtype))
            for name, tensor in named_weights
        ),
    )


def describe_tensor(name: str, tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(
        name=name,
        shape=tuple(tensor.shape),
        dtype=dtype_name(tensor.dtype),
        digest=digest_tensor(tensor),
    )


def digest_tensor(tensor: torch.Tensor) -> str:
    """Return the digest of a tensor's bytes in row-major order. Copy the tensor only if it is not contiguous or
    not on the CPU."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return f"xxh3_128:{xxhash.xxh3_128_hexdigest(flat.view(torch.uint8).numpy().data)}"


def combine_digests(digests: Mapping[str, str]) -> str:
    """Return one digest over `{name: digest}`; the order of the names does not matter."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return f"xxh3_128:{xxhash.xxh3_128_hexdigest(lines.encode())}"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
