"""A process group of one sender and its receivers. It is not PyTorch's default group, so it can be made again.

All members first meet at a rendezvous in the sender's store: so a missing member is named, and the others do not hang.
After every transfer each receiver reports, for the same reason: a broadcast itself only tells its sender that bytes left.
"""

import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, Store, TCPStore, Work

from rollout.weights.transport.buckets import ALIGNMENT

__all__ = [
    "SENDER",
    "BroadcastGroup",
    "CollectiveError",
    "find_store",
    "join_rendezvous",
    "mark_lost",
    "open_store",
    "rendezvous",
]

SENDER = 0
"""Rank of the sender; receivers have the ranks from 1 up."""
_LOST = 0  # group size that marks a lost group; no real group has size 0


class CollectiveError(RuntimeError):
    """A group could not be made, or broke; its members have left it.

    Attributes:
        ranks: receivers known to be missing or silent.
    """

    def __init__(self, message: str, *, ranks: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.ranks = tuple(ranks)


def open_store(host: str, timeout_seconds: float) -> TCPStore:
    """Opens the store of the sender, on a free port."""
    timeout = timedelta(seconds=timeout_seconds)
    return TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)


def find_store(address: tuple[str, int], timeout_seconds: float) -> TCPStore:
    """Connects to the store of a sender.

    Raises:
        CollectiveError: no sender answers.
    """
    try:
        return TCPStore(*address, is_master=False, timeout=timedelta(seconds=timeout_seconds))
    except torch.distributed.DistError as error:
        raise CollectiveError(
            f"no sender of weights answers at {address[0]}:{address[1]}: {_first_line(error)}"
        ) from error


def rendezvous(
    store: Store, *, num_receivers: int, generation: int, bucket_bytes: int, deadline: float
) -> None:
    """Waits for every receiver of a generation, and tells those that joined whether all did.

    Args:
        store: store of the sender.
        num_receivers: number of receivers that must join.
        generation: generation of the group.
        bucket_bytes: size of a bucket, which the receivers are told.
        deadline: time limit, in the time of `time.monotonic`.

    Raises:
        CollectiveError: receivers did not join, or expect another size of the group.
    """
    size = num_receivers + 1
    keys = {rank: _key(generation, "member", rank) for rank in range(1, size)}
    silent = _wait_for(store, keys, deadline)
    complaint = ""
    if silent:
        complaint = (
            f"receivers {silent} of {num_receivers} did not join generation {generation} in time"
        )
    else:
        sizes = {rank: int(store.get(key)) for rank, key in keys.items()}
        if silent := [rank for rank, theirs in sizes.items() if theirs == _LOST]:
            complaint = f"receivers {silent} of {num_receivers} were lost before generation {generation} was complete"
        elif silent := [rank for rank, theirs in sizes.items() if theirs != size]:
            complaint = f"receivers {silent} joined generation {generation} as one of another size than {size}"
    verdict = {"complaint": complaint, "bucket_bytes": bucket_bytes}
    store.set(_key(generation, "verdict", SENDER), json.dumps(verdict))
    if complaint:
        raise CollectiveError(complaint, ranks=silent)


def mark_lost(store: Store, *, rank: int, generation: int) -> None:
    """Marks a receiver as lost, so that no rendezvous waits for it.

    Args:
        store: another client than one that waits, since that one blocks.
        rank: rank of the receiver.
        generation: generation of the group.
    """
    store.set(_key(generation, "member", rank), str(_LOST))


def join_rendezvous(store: Store, *, rank: int, size: int, generation: int, deadline: float) -> int:
    """Joins a generation and waits for the sender's answer; returns the size of a bucket in bytes.

    Raises:
        CollectiveError: a receiver did not join, or the sender is silent.
    """
    key = _key(generation, "verdict", SENDER)
    try:
        store.set(_key(generation, "member", rank), str(size))
        store.wait([key], _left(deadline))
        verdict = json.loads(store.get(key))
    except torch.distributed.DistError as error:
        raise CollectiveError(
            f"the sender did not answer in the rendezvous of generation {generation} in time: {_first_line(error)}"
        ) from error
    if verdict["complaint"]:
        raise CollectiveError(verdict["complaint"])
    return verdict["bucket_bytes"]


class BroadcastGroup:
    """One generation of the group. Rank 0 sends.

    Args:
        store: store of the sender.
        rank: rank of this process.
        size: number of members, counting the sender.
        generation: the same number at all members; separates this group from remains of earlier ones.
        device: device of the tensors.
        deadline: time limit for all to connect, in the time of `time.monotonic`.

    Raises:
        CollectiveError: not all members connected in time.
    """

    def __init__(
        self,
        store: Store,
        *,
        rank: int,
        size: int,
        generation: int,
        device: torch.device,
        deadline: float,
    ) -> None:
        self.rank, self.size, self.generation = rank, size, generation
        self._store = store
        self._num_transfers = 0
        self._in_flight: deque[Work] = deque()
        prefixed = PrefixStore(f"generation{generation}/group", store)
        try:
            self._group = _process_group(device.type, prefixed, rank, size, _left(deadline))
        except RuntimeError as error:
            raise CollectiveError(
                f"all {size} members of generation {generation} came, and did not connect: {_first_line(error)}"
            ) from error
        # NCCL connects at its first collective
        self.begin(torch.zeros(ALIGNMENT, dtype=torch.uint8, device=device), deadline)
        self.wait_oldest(deadline)

    @property
    def num_in_flight(self) -> int:
        """Number of broadcasts that have begun and not been waited for."""
        return len(self._in_flight)

    def begin(self, flat: torch.Tensor, deadline: float) -> None:
        """Begins to send `flat`, or to receive into it. All members begin the same broadcasts in the same order.

        Raises:
            CollectiveError: a member is gone, or another thread made this one leave.
        """
        if self._group is None:
            raise CollectiveError(f"generation {self.generation} was left meanwhile")
        try:
            self._in_flight.append(self._group.broadcast(flat, SENDER, _left(deadline)))
        except RuntimeError as error:
            raise CollectiveError(_first_line(error)) from None

    def wait_oldest(self, deadline: float) -> None:
        """Waits for the oldest broadcast in flight.

        Raises:
            CollectiveError: a member is gone, or the deadline has passed.
        """
        if not self._in_flight:
            raise CollectiveError(f"generation {self.generation} was left meanwhile")
        work = self._in_flight.popleft()
        try:
            work.wait(_left(deadline))
        except RuntimeError as error:
            del work  # while this error's traceback holds it, connections stay open
            raise CollectiveError(_first_line(error)) from None

    def close(self) -> None:
        """Leaves the group. Returns when no memory is read or written any more; in the worst case, after the deadlines."""
        self._in_flight.clear()
        group, self._group = self._group, None
        if group is not None:
            group.abort()

    def report(self, complaint: str = "") -> None:
        """Tells the sender that this receiver has finished a transfer, or what went wrong.

        Raises:
            CollectiveError: the sender is gone.
        """
        key = _key(self.generation, f"transfer{self._num_transfers}", self.rank)
        self._num_transfers += 1
        try:
            self._store.set(key, complaint)
        except torch.distributed.DistError as error:
            raise CollectiveError(f"the sender is gone: {_first_line(error)}") from error

    def take_reports(self, deadline: float) -> tuple[list[int], dict[int, str]]:
        """Returns the receivers that have not reported by the deadline, and the errors of those that failed."""
        transfer = f"transfer{self._num_transfers}"
        self._num_transfers += 1
        keys = {rank: _key(self.generation, transfer, rank) for rank in range(1, self.size)}
        silent = _wait_for(self._store, keys, deadline)
        answers = {r: self._store.get(key).decode() for r, key in keys.items() if r not in silent}
        return silent, {rank: answer for rank, answer in answers.items() if answer}


def _process_group(device_type: str, store: Store, rank: int, size: int, timeout: timedelta) -> Any:
    """Makes a group of the backend for a device: NCCL for CUDA, gloo for CPUs."""
    if device_type == "cuda":
        from torch.distributed import ProcessGroupNCCL

        options = ProcessGroupNCCL.Options()
        options._timeout = timeout
        return ProcessGroupNCCL(store, rank, size, options)
    return ProcessGroupGloo(store, rank, size, timeout)


def _wait_for(store: Store, keys: Mapping[int, str], deadline: float) -> list[int]:
    """Returns the ranks whose key is missing at the deadline."""
    try:
        store.wait(list(keys.values()), _left(deadline))
    except torch.distributed.DistStoreError:
        return [rank for rank, key in keys.items() if not store.check([key])]
    return []


def _key(generation: int, what: str, rank: int) -> str:
    return f"generation{generation}/{what}/{rank}"


def _left(deadline: float) -> timedelta:
    # never 0, which would be "no timeout"
    return timedelta(seconds=max(deadline - time.monotonic(), 0.001))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
