"""Transport by broadcast, sending end: one trainer sends its weights to many engines, bucket by bucket.

    CollectiveSender                             CollectiveReceiver, in every worker
      rebuild(num_receivers, generation)  <──>     join(address, rank, size, generation)
      send(update)                        ───>     receive(manifest, staging area)
                                                   then the engine verifies and commits

Each end has two buffers: while one bucket is in flight, the sender packs the next, and a receiver unpacks the last. The
manifest does not travel here: the process that tells a worker to receive hands it over.

A group that failed is left by all its members and cannot be used again; `rebuild` and `join` make the next one.
"""

import math
from collections.abc import Iterable

import torch

from rollout.weights.manifest import Manifest
from rollout.weights.transport.buckets import ALIGNMENT, BucketPlan
from rollout.weights.transport.member import (
    Member,
    TransferLimits,
    deadline_in,
    make_buffers,
    require_group,
)
from rollout.weights.transport.rendezvous import (
    SENDER,
    CollectiveError,
    find_store,
    mark_lost,
    open_store,
    rendezvous,
)
from rollout.weights.update import WeightUpdate

__all__ = ["CollectiveSender"]


class CollectiveSender(Member):
    """End of the trainer.

    Args:
        host: name or address under which receivers reach this process.
        device: device of the weights; decides the backend.
        bucket_mb: size of a bucket in MB (10^6 bytes), rounded up to whole cache lines; each end has two.
        limits: time limits.
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
        self._buffers = make_buffers(self._bucket_bytes, self._device)
        self._store = open_store(host, self._limits.join_seconds)
        self.address = (host, self._store.port)
        """Address at which receivers join; every sender has its own."""
        self._generation = -1

    def rebuild(self, num_receivers: int, generation: int) -> None:
        """Makes a group with receivers that call `join` meanwhile; leaves the previous group.

        Args:
            num_receivers: at least 1; they have the ranks 1 to this number.
            generation: a number higher than that of any previous group.

        Raises:
            ValueError: an argument is out of range.
            CollectiveError: receivers did not join; names them. The generation cannot be used again.
        """
        if num_receivers < 1:
            raise ValueError(f"num_receivers must be >= 1, got {num_receivers}")
        if generation <= self._generation:
            raise ValueError(
                f"generation must be higher than the last one, {self._generation}, got {generation}"
            )
        self.leave()
        self._generation = generation
        rendezvous(
            self._store,
            num_receivers=num_receivers,
            generation=generation,
            bucket_bytes=self._bucket_bytes,
            deadline=deadline_in(self._limits.join_seconds),
        )
        self._connect(self._store, rank=SENDER, size=num_receivers + 1, generation=generation)

    def lose(self, rank: int, generation: int) -> None:
        """Notes that a receiver is lost: a `rebuild` in another thread, and receivers that joined, fail at once.

        Args:
            rank: rank of the receiver.
            generation: generation of the group that it was to join.
        """
        store = find_store(self.address, self._limits.join_seconds)
        mark_lost(store, rank=rank, generation=generation)

    def send(self, update: WeightUpdate) -> None:
        """Broadcasts an update; returns when every receiver has it.

        Raises:
            ValueError: the tensors are not those of the manifest.
            CollectiveError: receivers are lost or report errors; names them. After any error the group is left.
        """
        specs = update.manifest.tensors
        missing = [spec.name for spec in specs if spec.name not in update.tensors]
        if missing or len(specs) != len(update.tensors):
            raise ValueError(
                f"the update must have its manifest's {len(specs)} tensors, "
                f"got {len(update.tensors)}; missing: {missing[:3]}"
            )
        self._send(update.manifest, ((spec.name, update.tensors[spec.name]) for spec in specs))

    def _send(self, manifest: Manifest, named_weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        group = require_group(self._group, "rebuild")
        plan = BucketPlan(manifest.tensors, bucket_bytes=self._bucket_bytes)
        deadline = deadline_in(self._limits.transfer_seconds(plan.num_bytes))

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
            self.leave()  # first, so that receivers that wait for this end stop
            deadline = deadline_in(self._limits.report_seconds)
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
