"""The processes of a trainer: the rank of this process, and communication between ranks.

torchrun starts them, or `ray_launch.py` does on Ray, and sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Tensors go
over the group of their device (NCCL for CUDA, gloo for CPUs), decisions and samples over a gloo group of their own: it
waits for as long as the first rank generates, while a collective of tensors times out after minutes.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

__all__ = ["ALONE", "FIRST_WAITS", "Ranks", "join_ranks"]

T = TypeVar("T")

_PATIENCE = timedelta(days=7)
"""Timeout of a rank that waits for the first rank's decision. A rank that dies ends the wait at once: its connections close."""
_BUCKET_BYTES = 32 << 20
_FAILED = "paceline/failed"

FIRST_WAITS = "paceline/first_waits"
"""A key that is in the store while the first rank waits for the others to join."""


class Ranks:
    """A group of processes that all make the same calls in the same order.

    Args:
        rank: index of this process, from 0.
        count: number of processes.
        control: a gloo group of all of them; None where there is one process.
    """

    def __init__(
        self, rank: int = 0, count: int = 1, control: dist.ProcessGroup | None = None
    ) -> None:
        self.rank = rank
        self.count = count
        self._control = control

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, in the order of ranks."""
        if self._control is None:
            return [value]
        values: list[T | None] = [None] * self.count
        dist.all_gather_object(values, value, group=self._control)
        return values  # pyrefly: ignore

    def broadcast(self, value: T) -> T:
        """Return the first rank's value; the values of the others are ignored."""
        if self._control is None:
            return value
        values = [value if self.is_first else None]
        dist.broadcast_object_list(values, src=0, group=self._control)
        return values[0]  # pyrefly: ignore

    def check(self, mistake: str | None) -> None:
        """Let a user's mistake that one rank found end all of them.

        Raises:
            ValueError: the first mistake, on the first rank; the others leave.
        """
        for rank, found in enumerate(self.gather(mistake)):
            if found is not None and not self.is_first:
                raise SystemExit(2)
            if found is not None:
                raise ValueError(found if rank == 0 else f"rank {rank}: {found}")

    @torch.no_grad()
    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, bit for bit the same on all; several tensors go in one message."""
        if self.count == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            parts = flat.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))


ALONE = Ranks()
"""A trainer of one process."""


@contextmanager
def join_ranks(
    device: torch.device | str, *, needs_group: bool = False, init_method: str = "env://"
) -> Iterator[Ranks]:
    """Join the processes that were started together; `ALONE` for one process, unless it needs a process group.

    An error on any rank ends all: its connections close, on which the others wait. The rank that failed first writes its
    error to the store; the first rank reports it, and the others exit silently.

    Args:
        device: device of the tensors that are communicated.
        needs_group: make a process group of one process.
        init_method: where the ranks meet, as in `torch.distributed.init_process_group`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not needs_group:
        yield ALONE
        return
    store, rank, count = _rendezvous(init_method)
    if rank:
        _be_quiet()
    dist.init_process_group(
        dist.get_default_backend_for_device(device), store=store, rank=rank, world_size=count
    )
    try:
        control = dist.new_group(backend="gloo", timeout=_PATIENCE)
        assert isinstance(control, dist.ProcessGroup), "every rank belongs to it"
        if rank == 0:
            store.delete_key(FIRST_WAITS)
        yield Ranks(rank, count, control)
    except Exception as error:
        first = _first_to_fail(error, store, rank)
        if first is None:
            error.add_note(f"This was rank {rank} of {count}; it ends the others.")
            raise
        if rank:
            raise SystemExit(1) from error
        raise RuntimeError(f"rank {first} failed and ended the run of {count} processes") from error
    finally:
        dist.destroy_process_group()


def _rendezvous(init_method: str) -> tuple[dist.Store, int, int]:
    if "WORLD_SIZE" not in os.environ:
        return dist.HashStore(), 0, 1
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store, rank, count = next(iter(dist.rendezvous(init_method, rank, count)))
    if rank == 0:
        store.set(FIRST_WAITS, "")
    return store, rank, count


def _first_to_fail(error: Exception, store: dist.Store, rank: int) -> str | None:
    """Return the number of another rank that failed before this one, and why; None if this one was first."""
    try:
        first = store.compare_set(_FAILED, "", f"{rank} ({type(error).__name__}: {error})").decode()
    except dist.DistError:  # the store went with the rank that had it
        first = "0"
    return None if first.startswith(f"{rank} (") else first


def _be_quiet() -> None:
    """Silence warnings; only the first rank prints."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Group neighbouring tensors of one type into buckets of at most `_BUCKET_BYTES`; a larger tensor has its own bucket."""
    bucket: list[torch.Tensor] = []
    used = 0
    for tensor in tensors:
        is_full = used + tensor.nbytes > _BUCKET_BYTES
        if bucket and (is_full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, used = [], 0
        bucket.append(tensor)
        used += tensor.nbytes
    if bucket:
        yield bucket
