"""Names, shapes and types of a set of weights, and the error if two sets differ."""

from collections.abc import Iterable, Mapping

import torch

from rollout.weights.manifest import Manifest, dtype_name

__all__ = ["Layout", "check_same_layout", "layout_of", "layout_of_manifest", "some_of"]

Layout = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and type of each tensor, by name."""


def layout_of(tensors: Mapping[str, torch.Tensor]) -> Layout:
    """Return the layout of tensors."""
    return {name: (tuple(t.shape), dtype_name(t.dtype)) for name, t in tensors.items()}


def layout_of_manifest(manifest: Manifest) -> Layout:
    """Return the layout that a manifest declares."""
    return {spec.name: (spec.shape, spec.dtype) for spec in manifest.tensors}


def check_same_layout(expected: Layout, got: Layout, *, of: str) -> None:
    """Raise a ValueError that names the tensors that are missing, extra, or of another shape or type in `got`."""
    missing = [name for name in expected if name not in got]
    extra = [name for name in got if name not in expected]
    mismatched = [
        f"{name} is {_describe(*got[name])}, not {_describe(*layout)}"
        for name, layout in expected.items()
        if name in got and got[name] != layout
    ]
    complaints = [
        f"{len(names)} {what}: {some_of(names)}"
        for what, names in (("missing", missing), ("extra", extra), ("mismatched", mismatched))
        if names
    ]
    if complaints:
        raise ValueError(
            f"{of} must match the {len(expected)} live tensors, got " + "; ".join(complaints)
        )


def _describe(shape: tuple[int, ...], dtype: str) -> str:
    return f"{dtype}{list(shape)}"


def some_of(names: Iterable[str], *, at_most: int = 3) -> str:
    """Return a few of the names, and the number of the others."""
    names = list(names)
    rest = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {rest} more" if rest > 0 else "")
