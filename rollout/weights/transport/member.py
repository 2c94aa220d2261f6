"""Common parts of sender and receiver of a broadcast: time limits, buffers, and a place in a group."""

import time
from dataclasses import dataclass

import torch
from torch.distributed import Store

from rollout.weights.transport.rendezvous import BroadcastGroup

__all__ = ["Member", "TransferLimits", "deadline_in", "make_buffers", "require_group"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferLimits:
    """Time limits of one transfer."""

    join_seconds: float = 30.0
    """Limit for all members of a group to arrive, and again for them to connect."""
    floor_seconds: float = 10.0
    """Limit for a transfer of no bytes; that of a receiver begins when it begins to wait."""
    assumed_mb_per_second: float = 50.0
    """A transfer may take longer by its bytes over this speed (10^6 bytes/s)."""
    report_seconds: float = 2.0
    """Limit for receivers to report after a failed transfer; one that does not report counts as lost."""

    def transfer_seconds(self, num_bytes: int) -> float:
        """Returns the time limit of a transfer of `num_bytes`, in seconds."""
        return self.floor_seconds + num_bytes / (self.assumed_mb_per_second * 1e6)


class Member:
    """Sender or receiver: holds its place in the present group, if there is one."""

    def __init__(self, device: str | torch.device, limits: TransferLimits | None) -> None:
        self._device = torch.device(device)
        self._limits = limits or TransferLimits()
        self._group: BroadcastGroup | None = None

    def leave(self) -> None:
        """Leaves the group, if there is one; members that wait for this one get an error."""
        if self._group is not None:
            self._group.close()
            self._group = None

    def _connect(self, store: Store, *, rank: int, size: int, generation: int) -> None:
        self._group = BroadcastGroup(
            store,
            rank=rank,
            size=size,
            generation=generation,
            device=self._device,
            deadline=deadline_in(self._limits.join_seconds),
        )


def require_group(group: BroadcastGroup | None, call: str) -> BroadcastGroup:
    """Returns the group.

    Raises:
        RuntimeError: the member has joined no group.
    """
    if group is None:
        raise RuntimeError(f"not in a group, or it was left after an error: {call} first")
    return group


def make_buffers(num_bytes: int, device: torch.device) -> list[torch.Tensor]:
    """Makes two buffers, which are kept: memory that is used for the first time is slow."""
    return [torch.empty(num_bytes, dtype=torch.uint8, device=device) for _ in range(2)]


def deadline_in(seconds: float) -> float:
    """Returns the value that `time.monotonic` will have after this many seconds."""
    return time.monotonic() + seconds
