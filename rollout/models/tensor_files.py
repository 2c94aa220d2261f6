"""Reader of the safetensors files in a model directory. It compares them with the digests of a manifest; errors
name the file."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from rollout.models.json_file import read_json
from rollout.weights.manifest import MANIFEST, digest_tensor

__all__ = ["INDEX", "SINGLE", "is_finite", "read_tensor_file", "read_tensors"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def read_tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of a directory with one or several safetensors files.

    If the directory contains the manifest of a published version, each tensor's bytes are compared with its digest.

    Raises:
        ValueError: a file is missing or damaged, or a tensor differs from the manifest.
    """
    digests = _published_digests(directory)
    for file in _files(directory):
        if not (directory / file).is_file():
            raise ValueError(f"{directory} has no {file}; weights must be in safetensors files")
        for name, tensor in read_tensor_file(directory / file):
            if digests is not None and digests.pop(name, None) != digest_tensor(tensor):
                raise ValueError(
                    f"{name} in {directory / file} is not what was published: its bytes differ from the digest in "
                    f"{MANIFEST}; copy the version again, or remove {MANIFEST} if the weights were changed on purpose"
                )
            yield name, tensor
    if digests:
        raise ValueError(
            f"{directory} lacks {len(digests)} tensors of its {MANIFEST}, for example {sorted(digests)[0]}"
        )


def read_tensor_file(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of one safetensors file.

    Raises:
        ValueError: the file is truncated or damaged.
    """
    _check_file_digest(path)
    try:
        with safe_open(str(path), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                yield name, tensors.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or damaged ({error}); copy or download the file again"
        ) from error


def _check_file_digest(path: Path) -> None:
    """Compare a file in a folder of a published version (ema/, adapter/) with the digest in that version's
    manifest."""
    manifest = path.parent.parent / MANIFEST
    if not manifest.is_file():
        return
    name = f"{path.parent.name}/{path.name}"
    files = read_json(manifest).get("files") or ()
    for spec in files:
        if isinstance(spec, Mapping) and spec.get("name") == name:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if spec.get("sha256") != digest:
                raise ValueError(
                    f"{path} is not what was published: its bytes differ from the digest in {manifest}; copy the version "
                    "again"
                )


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether no element is NaN or infinite, in one pass without a copy."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    least, largest = torch.aminmax(tensor.detach())  # both are NaN if an element is
    return bool(least.isfinite() & largest.isfinite())


def _files(directory: Path) -> list[str]:
    if not (directory / INDEX).is_file():
        return [SINGLE]
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise ValueError(f"{directory / INDEX} must map tensors to files in weight_map")
    return sorted(set(weight_map.values()))


def _published_digests(directory: Path) -> dict[str, str] | None:
    """Return the digests by tensor name if a `WeightStore` published the directory, else None."""
    if not (directory / MANIFEST).is_file():
        return None
    tensors = read_json(directory / MANIFEST).get("tensors")
    is_ours = isinstance(tensors, list) and all(
        isinstance(spec, Mapping) and {"name", "digest"} <= spec.keys() for spec in tensors
    )
    return {spec["name"]: spec["digest"] for spec in tensors} if is_ours else None
