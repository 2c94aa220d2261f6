"""Checks of every address that a kernel touches: inside its tensor, defined, and touched by one program only."""

import contextlib
import linecache
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as stock
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from tests.kernels.gpu.interpreter.arithmetic import replace
from tests.kernels.gpu.interpreter.formats import from_float32

__all__ = ["STATE", "OutOfBounds", "Race", "check_races", "checked", "extent", "install_memory"]


class OutOfBounds(RuntimeError):
    """An address outside the tensor it was derived from."""


class Race(RuntimeError):
    """An element that two programs touch, one of them by a store."""


@dataclass(frozen=True)
class _Access:
    kind: str
    """"load", "store" or "atomic"."""
    program: int
    addresses: np.ndarray
    line: str


@dataclass
class _State:
    is_checking: bool = False
    seed: int = 0
    regions: list[tuple[int, int, str]] = field(default_factory=list)
    """Address range and name of each tensor of the running launch: (first byte, past the last byte, name)."""
    accesses: list[_Access] | None = None
    program: int = 0
    num_launches: int = 0


STATE = _State()


@contextlib.contextmanager
def checked(*, seed: int = 0) -> Iterator[None]:
    """Check launches in the block, running their programs in an order drawn from `seed`."""
    before = STATE.is_checking, STATE.seed
    STATE.is_checking, STATE.seed = True, seed
    try:
        yield
    finally:
        STATE.is_checking, STATE.seed = before


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """(first byte, past the last byte) of a tensor, without the gaps after it that its strides leave."""
    start = tensor.data_ptr()
    if tensor.numel() == 0:
        return start, start
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return start, start + (sum((n - 1) * step for n, step in sizes) + 1) * tensor.element_size()


def install_memory() -> None:
    # a pointer keeps the tensor it came from through these operations
    for name, argument in {
        "create_addptr": 0,
        "create_splat": 1,
        "create_broadcast": 0,
        "create_expand_dims": 0,
        "create_reshape": 0,
        "create_trans": 0,
        "create_bitcast": 0,
        "create_unsplat": 0,
    }.items():
        _carry_origin(name, argument)
    replace(InterpreterBuilder, "create_masked_load")(_load)
    replace(InterpreterBuilder, "create_masked_store")(_store)
    replace(InterpreterBuilder, "create_atomic_cas")(_compare_and_swap)
    replace(InterpreterBuilder, "create_atomic_rmw")(_update)


def _carry_origin(name: str, argument: int) -> None:
    old = InterpreterBuilder.__dict__[name]

    def call(self, *args, **kwargs):
        out = old(self, *args, **kwargs)
        source = args[argument]
        if isinstance(source, TensorHandle) and "origin" in source.attr:
            out.attr["origin"] = source.attr["origin"]
        return out

    setattr(InterpreterBuilder, name, call)


def _load(old, self, pointers, mask, other, *args, **kwargs):
    _touch("load", pointers, mask)
    dtype = pointers.get_element_ty()
    is_float = not isinstance(dtype, tl.pointer_type) and dtype.is_floating()
    if other is None and STATE.is_checking and is_float:
        # undefined on a GPU; the stock interpreter gives zeros, which hide a forgotten `other`
        nans = np.full(pointers.data.shape, np.nan, np.float32)
        other = TensorHandle(from_float32(nans, dtype), dtype)
    return old(self, pointers, mask, other, *args, **kwargs)


def _store(old, self, pointers, value, mask, *args, **kwargs):
    _touch("store", pointers, mask)
    return old(self, pointers, value, mask, *args, **kwargs)


def _compare_and_swap(old, self, pointers, *args):
    _touch("atomic", pointers, None)
    return old(self, pointers, *args)


def _update(old, self, op, pointers, value, mask, *args):
    _touch("atomic", pointers, mask)
    return old(self, op, pointers, value, mask, *args)


def _touch(kind: str, pointers: TensorHandle, mask: TensorHandle | None) -> None:
    if not STATE.is_checking or STATE.accesses is None:
        return
    data = pointers.data
    is_touched = (
        np.ones(data.shape, bool) if mask is None else np.broadcast_to(mask.data, data.shape)
    )
    addresses = data[is_touched].astype(np.uint64)
    if not addresses.size:
        return
    size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
    origin = pointers.attr.get("origin")
    regions = [origin] if origin else STATE.regions
    is_inside = np.zeros(addresses.shape, bool)
    for first, end, _ in regions:
        is_inside |= (addresses >= first) & (addresses + np.uint64(size) <= end)
    line = _kernel_line() if kind == "store" or not is_inside.all() else ""
    if not is_inside.all():
        raise OutOfBounds(_describe(kind, addresses[~is_inside], regions, size, line))
    STATE.accesses.append(_Access(kind, STATE.program, addresses, line))


def _describe(
    kind: str, outside: np.ndarray, regions: list[tuple[int, int, str]], size: int, line: str
) -> str:
    where = f"program {stock.interpreter_builder.grid_idx}: {line}"
    if len(regions) != 1:
        return f"{kind} of {len(outside)} element(s) outside every argument, {where}"
    first, end, name = regions[0]
    offsets = (outside.astype(np.int64) - first) // size
    return (
        f"{kind} of {len(outside)} element(s) outside `{name}`; element offsets {offsets.min()}..{offsets.max()} "
        f"of {(end - first) // size}, {where}"
    )


def _kernel_line() -> str:
    """Return the running line of the kernel: that of the innermost frame outside Triton and this package."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if "/triton/" not in path and "/interpreter/" not in path:
            code = linecache.getline(path, frame.f_lineno).strip()
            return f"{path.rsplit('/', 1)[-1]}:{frame.f_lineno}: {code}"
        frame = frame.f_back
    return "?"


def check_races(kernel: str, accesses: list[_Access]) -> None:
    """Raises `Race` where an element stored by one program is read or written by another."""
    stores = _owners(accesses, "store")
    if stores is None:
        return
    addresses, first, last = stores
    if (first != last).any():
        i = int(np.argmax(first != last))
        raise _race(kernel, "both store to", (first[i], last[i]), addresses[i], accesses)
    for kind, verb in (("load", "load and store"), ("atomic", "update atomically and store to")):
        others = _owners(accesses, kind)
        if others is None:
            continue
        shared, i, j = np.intersect1d(addresses, others[0], return_indices=True)
        differs = (first[i] != others[1][j]) | (first[i] != others[2][j])
        if differs.any():
            k = int(np.argmax(differs))
            other = others[1][j[k]] if others[1][j[k]] != first[i[k]] else others[2][j[k]]
            raise _race(kernel, verb, (first[i[k]], other), shared[k], accesses)


def _owners(accesses: list[_Access], kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Addresses touched, and the first and last program that touched each."""
    chosen = [access for access in accesses if access.kind == kind]
    if not chosen:
        return None
    addresses = np.concatenate([access.addresses for access in chosen])
    programs = np.concatenate([np.full(a.addresses.shape, a.program, np.int64) for a in chosen])
    order = np.argsort(addresses, kind="stable")
    unique, starts = np.unique(addresses[order], return_index=True)
    programs = programs[order]
    return unique, np.minimum.reduceat(programs, starts), np.maximum.reduceat(programs, starts)


def _race(
    kernel: str, verb: str, programs: tuple[int, int], address: int, accesses: list[_Access]
) -> Race:
    inside = (
        f"`{name}` at byte {int(address) - first}"
        for first, end, name in STATE.regions
        if first <= address < end
    )
    lines = sorted({access.line for access in accesses if access.kind == "store"})
    return Race(
        f"{kernel}: programs {programs[0]} and {programs[1]} {verb} {next(inside, hex(int(address)))}; stores at {lines}"
    )
