"""Transport `collective`: one trainer broadcasts its weights to many engines, bucket by bucket.

    CollectiveSender                             CollectiveReceiver, in every worker
      rebuild(num_receivers, generation)  <──>     join(address, rank, size, generation)
      send(update)                        ───>     receive(manifest, weight_receiver)
                                                   weight_receiver.verify(), commit()

Two buffers at each end: while one bucket is in flight, the sender packs the next, and a receiver unpacks the last. The
manifest does not travel here: whoever tells a worker to receive hands it over, before the payload where digests are
known, and where they are computed while packing (`send_stream`) once without them and again, to `verify`, with them. So
there is one order of things on the wire, whether the trainer is sharded or not.

A group that failed is left by all its members, and is of no more use; `rebuild` and `join` make the next one, of whoever
is still there.
"""

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch.distributed import Store

from rollout.weights.manifest import Manifest, TensorSpec, describe_tensor
from rollout.weights.staging import StagingArea
from rollout.weights.transport.buckets import ALIGNMENT, BucketPlan, Landing
from rollout.weights.transport.rendezvous import (
    SENDER,
    BroadcastGroup,
    CollectiveError,
    answer_roll,
    call_roll,
    cross_off,
    find_store,
    open_store,
)
from rollout.weights.update import WeightUpdate

__all__ = ["CollectiveError", "CollectiveReceiver", "CollectiveSender", "TransferLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferLimits:
    """How long anyone waits for anyone."""

    join_seconds: float = 30.0
    """For all members of a group to come, and again for them to connect."""
    floor_seconds: float = 10.0
    """For a transfer of any size, the gathering of sharded weights included; a receiver's begins when it begins to wait."""
    assumed_mb_per_second: float = 50.0
    """A transfer has its bytes over this (10^6 bytes/s) besides."""
    report_seconds: float = 2.0
    """After a transfer failed, for those who noticed to say so; who does not is taken for lost."""

    def transfer_seconds(self, num_bytes: int) -> float:
        return self.floor_seconds + num_bytes / (self.assumed_mb_per_second * 1e6)


class _Member:
    """What both ends have in common: a place in the present group, if there is one."""

    def __init__(self, device: str | torch.device, limits: TransferLimits | None) -> None:
        self._device = torch.device(device)
        self._limits = limits or TransferLimits()
        self._group: BroadcastGroup | None = None

    def leave(self) -> None:
        """Drop the group, if there is one; who waits for this member in it gets an error."""
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
            deadline=_deadline(self._limits.join_seconds),
        )


class CollectiveSender(_Member):
    """The trainer's end.

    Args:
        host: name or address under which receivers reach this process.
        device: of the weights; decides the backend.
        bucket_mb: bytes of a bucket in MB (10^6), rounded up to whole cache lines; there are two on every end.
        limits: deadlines.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        device: str | torch.device = "cpu",
        bucket_mb: float = 16.0,
        limits: TransferLimits | None = None,
    ) -> None:
        if bucket_mb <= 0:
            raise ValueError(f"bucket_mb must be > 0, got {bucket_mb}")
        super().__init__(device, limits)
        self._bucket_bytes = math.ceil(bucket_mb * 1e6 / ALIGNMENT) * ALIGNMENT
        self._buffers = _make_buffers(self._bucket_bytes, self._device)
        self._store = open_store(host, self._limits.join_seconds)
        self.address = (host, self._store.port)
        """Where receivers join; another one in every sender."""
        self._generation = -1

    def rebuild(self, num_receivers: int, generation: int) -> None:
        """Make a group with so many receivers, which call `join` meanwhile; leaves the one before.

        Args:
            num_receivers: at least 1; their ranks are 1 to this.
            generation: higher than any before.

        Raises:
            ValueError: of the arguments.
            CollectiveError: names who did not come. The generation is spent.
        """
        if num_receivers < 1:
            raise ValueError(f"num_receivers must be >= 1, got {num_receivers}")
        if generation <= self._generation:
            raise ValueError(
                f"generation must be higher than the last one, {self._generation}, got {generation}"
            )
        self.leave()
        self._generation = generation
        call_roll(
            self._store,
            num_receivers=num_receivers,
            generation=generation,
            bucket_bytes=self._bucket_bytes,
            deadline=_deadline(self._limits.join_seconds),
        )
        self._connect(self._store, rank=SENDER, size=num_receivers + 1, generation=generation)

    def lose(self, rank: int, generation: int) -> None:
        """A receiver is lost. If `rebuild` waits for it, in another thread, it and those who came end at once with an error.

        Args:
            rank: of the receiver.
            generation: that it was to be in.
        """
        store = find_store(self.address, self._limits.join_seconds)
        cross_off(store, rank=rank, generation=generation)

    def send(self, update: WeightUpdate) -> None:
        """Broadcast an update whose digests are known; returns when every receiver has it.

        Raises:
            ValueError: its tensors are not those of its manifest.
            CollectiveError: names receivers that are lost or complain. After any error the group is left.
        """
        specs = update.manifest.tensors
        missing = [spec.name for spec in specs if spec.name not in update.tensors]
        if missing or len(specs) != len(update.tensors):
            raise ValueError(
                f"the update must have its manifest's {len(specs)} tensors, "
                f"got {len(update.tensors)}; missing: {missing[:3]}"
            )
        self._send(update.manifest, ((spec.name, update.tensors[spec.name]) for spec in specs))

    def send_stream(
        self, layout: Manifest, named_weights: Iterable[tuple[str, torch.Tensor]]
    ) -> Manifest:
        """Broadcast weights that are gathered one by one, and digest each while it is at hand.

        On an error the rest is still taken from `named_weights`: a sharded trainer's other ranks are gathering it, too.

        Args:
            layout: names, shapes and dtypes in that order (`describe_layout`); digests are not looked at.
            named_weights: each is held until it is packed, no longer.

        Returns:
            The manifest with digests, for the receivers' `verify`.

        Raises:
            ValueError: other weights than the layout says.
            CollectiveError: as `send`.
        """
        weights = iter(named_weights)
        specs: list[TensorSpec] = []
        try:
            self._send(layout, _described(weights, specs))
        finally:
            deque(weights, maxlen=0)
        return Manifest(version=layout.version, tensors=tuple(specs))

    def _send(self, manifest: Manifest, named_weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        group = _member(self._group, "rebuild")
        plan = BucketPlan(manifest.tensors, bucket_bytes=self._bucket_bytes)
        deadline = _deadline(self._limits.transfer_seconds(plan.num_bytes))

        def free_buffer(bucket: int) -> torch.Tensor:
            if group.num_in_flight == len(self._buffers):
                group.wait_oldest(deadline)
            return self._buffers[bucket % len(self._buffers)]

        failure = ""
        try:
            for filled in plan.pack(named_weights, free_buffer):
                group.begin(filled, deadline)
            while group.num_in_flight:
                group.wait_oldest(deadline)
        except CollectiveError as error:
            failure = str(error)
        except BaseException:
            self.leave()
            raise
        if failure:
            self.leave()  # first, so that those who wait for this end stop
            deadline = _deadline(self._limits.report_seconds)
        silent, complaints = group.take_reports(deadline)
        if failure or silent or complaints:
            self.leave()
            parts = [f"receivers {silent} are silent"] if silent else []
            parts += [f"receiver {rank}: {complaint}" for rank, complaint in complaints.items()]
            parts += [f"here: {failure}"] if failure else []
            raise CollectiveError(
                f"version {manifest.version} did not reach all {group.size - 1} receivers of "
                f"generation {group.generation}: {'; '.join(parts)}",
                ranks=silent,
            )


class CollectiveReceiver(_Member):
    """A worker's end.

    Args:
        device: of the weights; of the same type as the sender's.
        limits: deadlines, the same as the sender's.
    """

    def __init__(
        self, *, device: str | torch.device = "cpu", limits: TransferLimits | None = None
    ) -> None:
        super().__init__(device, limits)
        self._bucket_bytes = 0
        self._buffers: list[torch.Tensor] = []

    def join(self, address: tuple[str, int], rank: int, size: int, generation: int) -> None:
        """Become a member of a group that the sender at `address` rebuilds meanwhile; leaves the one before.

        Args:
            address: `CollectiveSender.address`.
            rank: 1 to `size - 1`.
            size: of the group, the sender counted.
            generation: the sender's.

        Raises:
            ValueError: of the arguments.
            CollectiveError: the sender is not there, or says who did not come.
        """
        if not 1 <= rank < size:
            raise ValueError(
                f"rank must be 1 to size - 1 ({size - 1}), since the sender has 0; got {rank}"
            )
        self.leave()
        deadline = _deadline(self._limits.join_seconds)
        store = find_store(address, self._limits.join_seconds)
        bucket_bytes = answer_roll(
            store, rank=rank, size=size, generation=generation, deadline=deadline
        )
        if bucket_bytes != self._bucket_bytes:
            self._bucket_bytes = bucket_bytes
            self._buffers = _make_buffers(bucket_bytes, self._device)
        self._connect(store, rank=rank, size=size, generation=generation)

    def receive(self, manifest: Manifest, weights: StagingArea) -> None:
        """Stage what the sender sends, into the shadows of `weights`; its engine may go on decoding in another thread.

        Args:
            manifest: of the update; its digests may be missing, then `verify` needs them.
            weights: STAGED afterwards; if this raises IDLE, with the old version in force.

        Raises:
            ValueError: the manifest is not of these weights, or no newer version.
            CollectiveError: the sender or another receiver is lost, or late. After any error the group is left.
        """
        group = _member(self._group, "join")
        try:
            with weights.staging(manifest) as shadows:
                plan = BucketPlan(manifest.tensors, bucket_bytes=self._bucket_bytes)
                self._fill(group, plan, Landing(plan, shadows))
                group.report()
        except BaseException as error:
            self.leave()
            with suppress(CollectiveError):  # that the sender is gone may be why we are here
                group.report(f"{type(error).__name__}: {error}")
            if isinstance(error, CollectiveError):
                raise CollectiveError(
                    f"version {manifest.version} did not arrive at receiver {group.rank} of {group.size - 1} "
                    f"in generation {group.generation}: {error}"
                ) from None
            raise

    def _fill(self, group: BroadcastGroup, plan: BucketPlan, landing: Landing) -> None:
        deadline = _deadline(self._limits.transfer_seconds(plan.num_bytes))
        arriving: deque[tuple[int, torch.Tensor | None]] = deque()

        def land() -> None:
            group.wait_oldest(deadline)
            bucket, buffer = arriving.popleft()
            if buffer is not None:
                landing.unpack(bucket, buffer)

        for bucket in range(len(plan.buckets)):
            if len(arriving) == len(self._buffers):
                land()
            buffer = self._buffers[bucket % len(self._buffers)][: plan.size(bucket)]
            direct = landing.direct(bucket)
            group.begin(buffer if direct is None else direct, deadline)
            arriving.append((bucket, buffer if direct is None else None))
        while arriving:
            land()
        landing.finish()


def _described(
    named_weights: Iterable[tuple[str, torch.Tensor]], specs: list[TensorSpec]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The same weights; of each that was taken, `specs` has name and digest."""
    for name, tensor in named_weights:
        specs.append(describe_tensor(name, tensor))
        yield name, tensor


def _member(group: BroadcastGroup | None, call: str) -> BroadcastGroup:
    if group is None:
        raise RuntimeError(f"not in a group, or it was left after an error: {call} first")
    return group


def _make_buffers(num_bytes: int, device: torch.device) -> list[torch.Tensor]:
    """Two, kept for good: memory used for the first time is slow."""
    return [torch.empty(num_bytes, dtype=torch.uint8, device=device) for _ in range(2)]


def _deadline(seconds: float) -> float:
    return time.monotonic() + seconds
