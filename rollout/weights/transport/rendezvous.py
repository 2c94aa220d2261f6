"""A process group from one sender to its receivers, made without a default group, so that it can be made again.

Whoever is to be in it calls the roll first, through the sender's store: so a member that is missing is named, and those
that came do not hang. After every transfer each receiver reports, for the same reason: a broadcast alone tells its sender
no more than that bytes left.
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
    "answer_roll",
    "call_roll",
    "cross_off",
    "find_store",
    "open_store",
]

SENDER = 0
"""Rank of the sender; receivers have 1 to their number."""
_LOST = 0  # no group has this size


class CollectiveError(RuntimeError):
    """A group that was not made, or broke; whoever was in it has left it.

    Attributes:
        ranks: receivers that were missing or silent, as far as it is known.
    """

    def __init__(self, message: str, *, ranks: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.ranks = tuple(ranks)


def open_store(host: str, timeout_seconds: float) -> TCPStore:
    """The sender's store, on a port that is free."""
    timeout = timedelta(seconds=timeout_seconds)
    return TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)


def find_store(address: tuple[str, int], timeout_seconds: float) -> TCPStore:
    """The same from a receiver.

    Raises:
        CollectiveError: there is none.
    """
    try:
        return TCPStore(*address, is_master=False, timeout=timedelta(seconds=timeout_seconds))
    except torch.distributed.DistError as error:
        raise CollectiveError(
            f"no sender of weights answers at {address[0]}:{address[1]}: {_first_line(error)}"
        ) from error


def call_roll(
    store: Store, *, num_receivers: int, generation: int, bucket_bytes: int, deadline: float
) -> None:
    """Wait for every receiver of a generation, and tell those that came whether all did.

    Args:
        store: the sender's.
        num_receivers: that must answer.
        generation: of the group.
        bucket_bytes: told to the receivers.
        deadline: of `time.monotonic`.

    Raises:
        CollectiveError: some did not come, or believe in another size.
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


def cross_off(store: Store, *, rank: int, generation: int) -> None:
    """Answer the roll for a receiver that is known to be lost, so that nobody waits for it.

    Args:
        store: a client of its own: one that waits lets nobody else in.
        rank: of the receiver.
        generation: of the group.
    """
    store.set(_key(generation, "member", rank), str(_LOST))


def answer_roll(store: Store, *, rank: int, size: int, generation: int, deadline: float) -> int:
    """Be counted, and learn whether all came; returns bytes per bucket.

    Raises:
        CollectiveError: some did not; or the sender is silent.
    """
    key = _key(generation, "verdict", SENDER)
    try:
        store.set(_key(generation, "member", rank), str(size))
        store.wait([key], _left(deadline))
        verdict = json.loads(store.get(key))
    except torch.distributed.DistError as error:
        raise CollectiveError(
            f"the sender did not call the roll of generation {generation} in time: {_first_line(error)}"
        ) from error
    if verdict["complaint"]:
        raise CollectiveError(verdict["complaint"])
    return verdict["bucket_bytes"]


class BroadcastGroup:
    """One generation of the group: rank 0 sends.

    Args:
        store: reaches the sender's.
        rank: of this process.
        size: with the sender.
        generation: the same for all; keeps what was left of earlier ones out.
        device: of the tensors.
        deadline: of `time.monotonic`, for all to be connected.

    Raises:
        CollectiveError: they are not.
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
        return len(self._in_flight)

    def begin(self, flat: torch.Tensor, deadline: float) -> None:
        """Begin to send `flat`, or to receive into it; in the same order everywhere.

        Raises:
            CollectiveError: a member is gone; this one, too, if another thread made it leave.
        """
        if self._group is None:
            raise CollectiveError(f"generation {self.generation} was left meanwhile")
        try:
            self._in_flight.append(self._group.broadcast(flat, SENDER, _left(deadline)))
        except RuntimeError as error:
            raise CollectiveError(_first_line(error)) from None

    def wait_oldest(self, deadline: float) -> None:
        """Block until what was begun first, of all in flight, is done.

        Raises:
            CollectiveError: a member is gone, or the deadline is past.
        """
        if not self._in_flight:
            raise CollectiveError(f"generation {self.generation} was left meanwhile")
        work = self._in_flight.popleft()
        try:
            work.wait(_left(deadline))
        except RuntimeError as error:
            del work  # as long as it lives, in this error's traceback, connections stay open
            raise CollectiveError(_first_line(error)) from None

    def close(self) -> None:
        """Leave. Returns when no memory is written or read any more, for which deadlines must pass in the worst case."""
        self._in_flight.clear()
        group, self._group = self._group, None
        if group is not None:
            group.abort()

    def report(self, complaint: str = "") -> None:
        """Of a receiver, that a transfer is over: well, or not.

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
        """Of the sender: who has not reported on this transfer by the deadline, and who complains of what."""
        transfer = f"transfer{self._num_transfers}"
        self._num_transfers += 1
        keys = {rank: _key(self.generation, transfer, rank) for rank in range(1, self.size)}
        silent = _wait_for(self._store, keys, deadline)
        answers = {r: self._store.get(key).decode() for r, key in keys.items() if r not in silent}
        return silent, {rank: answer for rank, answer in answers.items() if answer}


def _process_group(device_type: str, store: Store, rank: int, size: int, timeout: timedelta) -> Any:
    """The only place that knows backends: NCCL for CUDA, gloo for CPUs."""
    if device_type == "cuda":
        from torch.distributed import ProcessGroupNCCL

        options = ProcessGroupNCCL.Options()
        options._timeout = timeout
        return ProcessGroupNCCL(store, rank, size, options)
    return ProcessGroupGloo(store, rank, size, timeout)


def _wait_for(store: Store, keys: Mapping[int, str], deadline: float) -> list[int]:
    """Ranks whose key is not there by the deadline."""
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
