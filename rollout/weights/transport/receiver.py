"""Transport by broadcast, receiving end; see `rollout.weights.transport.sender`."""

from collections import deque
from contextlib import suppress

import torch

from rollout.weights.manifest import Manifest
from rollout.weights.staging import StagingArea
from rollout.weights.transport.buckets import BucketPlan, Landing
from rollout.weights.transport.member import (
    Member,
    TransferLimits,
    deadline_in,
    make_buffers,
    require_group,
)
from rollout.weights.transport.rendezvous import (
    BroadcastGroup,
    CollectiveError,
    find_store,
    join_rendezvous,
)

__all__ = ["CollectiveReceiver"]


class CollectiveReceiver(Member):
    """End of a worker.

    Args:
        device: device of the weights, of the same type as that of the sender.
        limits: time limits, the same as those of the sender.
    """

    def __init__(
        self, *, device: str | torch.device = "cpu", limits: TransferLimits | None = None
    ) -> None:
        super().__init__(device, limits)
        self._bucket_bytes = 0
        self._buffers: list[torch.Tensor] = []

    def join(self, address: tuple[str, int], rank: int, size: int, generation: int) -> None:
        """Joins a group that the sender at `address` rebuilds meanwhile; leaves the previous group.

        Args:
            address: `CollectiveSender.address`.
            rank: 1 to `size - 1`.
            size: number of members, counting the sender.
            generation: generation of the group.

        Raises:
            ValueError: the rank is out of range.
            CollectiveError: the sender does not answer, or names receivers that did not join.
        """
        if not 1 <= rank < size:
            raise ValueError(
                f"rank must be 1 to size - 1 ({size - 1}), since the sender has 0; got {rank}"
            )
        self.leave()
        deadline = deadline_in(self._limits.join_seconds)
        store = find_store(address, self._limits.join_seconds)
        bucket_bytes = join_rendezvous(
            store, rank=rank, size=size, generation=generation, deadline=deadline
        )
        if bucket_bytes != self._bucket_bytes:
            self._bucket_bytes = bucket_bytes
            self._buffers = make_buffers(bucket_bytes, self._device)
        self._connect(store, rank=rank, size=size, generation=generation)

    def receive(self, manifest: Manifest, weights: StagingArea) -> None:
        """Stages an update that the sender broadcasts; the engine may step in another thread meanwhile.

        Args:
            manifest: manifest of the update; its digests may be missing, then `verify` needs them.
            weights: place to write to. After an error nothing is staged.

        Raises:
            ValueError: the manifest does not fit these weights, or its version is not newer.
            CollectiveError: the sender or another receiver is lost or late. After any error the group is left.
        """
        group = require_group(self._group, "join")
        try:
            with weights.staging(manifest) as shadows:
                plan = BucketPlan(manifest.tensors, bucket_bytes=self._bucket_bytes)
                self._fill(group, plan, Landing(plan, shadows))
                group.report()
        except BaseException as error:
            self.leave()
            with suppress(CollectiveError):  # a lost sender may be the cause of the error
                group.report(f"{type(error).__name__}: {error}")
            if isinstance(error, CollectiveError):
                raise CollectiveError(
                    f"version {manifest.version} did not arrive at receiver {group.rank} of {group.size - 1} "
                    f"in generation {group.generation}: {error}"
                ) from None
            raise

    def _fill(self, group: BroadcastGroup, plan: BucketPlan, landing: Landing) -> None:
        deadline = deadline_in(self._limits.transfer_seconds(plan.num_bytes))
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
