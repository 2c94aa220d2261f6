"""Leases: which worker has which request, and until when. Plain Python; time is passed in.

    open -> WAITING -> LEASED -> closed: finished, rejected or cancelled
               ^          |
               └──────────┘   its last lease is given back

A lease that is overdue stays valid while its worker lives: another worker gets one besides, and the first valid answer
closes the request. Whatever comes under a lease of a closed request is discarded and counted. Lease ids are never
reused, so that a late answer cannot be taken for one to a later request of the same name.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from rollout.core import FinishReason, Request

__all__ = ["Lease", "LeaseBook"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    lease_id: int
    request: Request
    worker_id: str
    attempt: int
    """1 for the first lease of a request."""


@dataclass(slots=True)
class _Entry:
    """An open request."""

    request: Request
    leases: dict[int, Lease] = field(default_factory=dict)
    num_attempts: int = 0
    is_cancelled: bool = False


class LeaseBook:
    """issued = running + finished + rejected + cancelled, whatever becomes of the workers."""

    def __init__(self) -> None:
        self.issued = 0
        self.finished = 0
        self.rejected = 0
        self.cancelled = 0
        self.num_reissued = 0
        """Leases beyond the first of a request."""
        self.num_discarded = 0
        """Finished completions that came second."""
        self._open: dict[str, _Entry] = {}
        self._leases: dict[int, Lease] = {}
        self._of_worker: dict[str, dict[int, Lease]] = {}
        self._deadlines: dict[int, float] = {}
        self._queue: list[tuple[float, int]] = []  # heap of (deadline, lease_id), some out of date
        self._next_id = 0

    @property
    def running(self) -> int:
        return len(self._open)

    def is_open(self, request_id: str) -> bool:
        return request_id in self._open

    def is_cancelled(self, request_id: str) -> bool:
        return self._open[request_id].is_cancelled

    def holders(self, request_id: str) -> set[str]:
        """Workers that have a lease of an open request."""
        return {lease.worker_id for lease in self._open[request_id].leases.values()}

    def of_worker(self, worker_id: str) -> list[Lease]:
        """Leases of the request, the oldest first."""
        return list(self._of_worker.get(worker_id, {}).values())

    def open(self, request: Request) -> None:
        """Take a request on.

        Raises:
            ValueError: one of this name is open.
        """
        if request.request_id in self._open:
            raise ValueError(
                f"request_id must be new, got {request.request_id!r}, which is unfinished"
            )
        self._open[request.request_id] = _Entry(request)
        self.issued += 1

    def grant(self, request_id: str, worker_id: str, *, deadline: float) -> Lease:
        """Lease an open request to a worker that does not hold it yet."""
        entry = self._open[request_id]
        assert worker_id not in self.holders(request_id), f"{worker_id} holds {request_id}"
        entry.num_attempts += 1
        self.num_reissued += entry.num_attempts > 1
        lease = Lease(
            lease_id=self._next_id,
            request=entry.request,
            worker_id=worker_id,
            attempt=entry.num_attempts,
        )
        self._next_id += 1
        entry.leases[lease.lease_id] = self._leases[lease.lease_id] = lease
        self._of_worker.setdefault(worker_id, {})[lease.lease_id] = lease
        self.extend(lease, deadline=deadline)
        return lease

    def extend(self, lease: Lease, *, deadline: float) -> None:
        self._deadlines[lease.lease_id] = deadline
        heapq.heappush(self._queue, (deadline, lease.lease_id))

    def find(self, lease_id: int) -> Lease | None:
        """Returns a lease by id; None if its request is closed or its worker gone."""
        return self._leases.get(lease_id)

    def take_overdue(self, now: float) -> list[Lease]:
        """Leases whose deadline has passed, each once per deadline; they stay valid."""
        overdue = []
        while self._queue and self._queue[0][0] <= now:
            deadline, lease_id = heapq.heappop(self._queue)
            if self._deadlines.get(lease_id) == deadline:
                del self._deadlines[lease_id]
                overdue.append(self._leases[lease_id])
        return overdue

    def cancel(self, request_id: str) -> list[Lease]:
        """Mark an open request as cancelled; returns its leases, so that their workers can be told."""
        entry = self._open[request_id]
        entry.is_cancelled = True
        return list(entry.leases.values())

    def close(self, request_id: str, reason: FinishReason) -> list[Lease]:
        """Count an open request as answered; returns its leases, which end with it."""
        entry = self._open.pop(request_id)
        match reason:
            case FinishReason.STOP | FinishReason.LENGTH:
                self.finished += 1
            case FinishReason.REJECTED:
                self.rejected += 1
            case FinishReason.ABORTED:
                self.cancelled += 1
        ended = list(entry.leases.values())
        self._end(ended)
        return ended

    def discard(self, reason: FinishReason) -> None:
        """Count an answer that came under a lease that ended."""
        self.num_discarded += reason in (FinishReason.STOP, FinishReason.LENGTH)

    def give_back(self, lease: Lease) -> bool:
        """End a lease without an answer; returns True if its request has no other lease."""
        leases = self._open[lease.request.request_id].leases
        del leases[lease.lease_id]
        self._end([lease])
        return not leases

    def check(self) -> None:
        """Recount everything.

        Raises:
            RuntimeError: the books do not agree; with the counts.
        """
        if self.issued != self.running + self.finished + self.rejected + self.cancelled:
            raise RuntimeError(
                f"requests are lost or counted twice: {self.issued} issued, {self.running} running, "
                f"{self.finished} finished, {self.rejected} rejected, {self.cancelled} cancelled"
            )
        num_held = sum(len(entry.leases) for entry in self._open.values())
        num_working = sum(map(len, self._of_worker.values()))
        if not num_held == num_working == len(self._leases):
            raise RuntimeError(
                f"open requests hold {num_held} leases, workers {num_working}, and {len(self._leases)} are known"
            )

    def _end(self, leases: Iterable[Lease]) -> None:
        for lease in leases:
            del self._leases[lease.lease_id]
            del self._of_worker[lease.worker_id][lease.lease_id]
            self._deadlines.pop(lease.lease_id, None)
