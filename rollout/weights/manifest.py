"""What a version of the weights consists of: names, shapes, dtypes, and digests of the bytes."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import xxhash

MANIFEST = "manifest.json"
"""Name of the file in a published version's directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    name: str  # Hugging Face's
    shape: tuple[int, ...]
    dtype: str  # "bfloat16"
    digest: str = ""  # "xxh3_128:<hex>", of the contiguous bytes; empty until they are known

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
    """Of a directory in the store; empty on the wire."""

    def __post_init__(self) -> None:
        counts = Counter(spec.name for spec in (*self.tensors, *self.files))
        repeated = [name for name, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(f"a manifest names each tensor and file once, got twice: {repeated}")

    @property
    def has_digests(self) -> bool:
        """Whether it can be verified; a layout alone (`describe_layout`) cannot."""
        return all(spec.digest for spec in self.tensors)

    @property
    def is_int8(self) -> bool:
        """Whether the sender quantized the weights (`rollout.models.int8`)."""
        return any(spec.dtype == "int8" for spec in self.tensors)

    @property
    def digest(self) -> str:
        """One digest over all tensors, equal to `WeightReceiver.digest()` of who holds these weights."""
        if not self.has_digests:
            raise RuntimeError(f"the digests of version {self.version} are not known yet")
        return combine_digests({spec.name: spec.digest for spec in self.tensors})

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Inverse of `to_json`.

        Raises:
            ValueError: not the JSON of a manifest.
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
    """A manifest without digests, as of weights that are yet to be gathered.

    Args:
        version: of the weights.
        named_weights: read for shapes and dtypes alone: tensors on `meta` will do.
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
    """Digest of the tensor's bytes in row-major order; copies only what is not contiguous or not on the CPU."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return f"xxh3_128:{xxhash.xxh3_128_hexdigest(flat.view(torch.uint8).numpy().data)}"


def combine_digests(digests: Mapping[str, str]) -> str:
    """One digest over `{name: digest}`, whatever the order of the names."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return f"xxh3_128:{xxhash.xxh3_128_hexdigest(lines.encode())}"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
