"""Requests on their way to workers and back. Plain Python; time is passed in.

submit -> router: waits -> lease: a worker with room -> first valid answer -> take_completions
             ^                |
             └────────────────┘  its worker is gone, or the lease overdue
"""

from collections.abc import Sequence
from dataclasses import replace

from rollout.core import Completion, FinishReason, Request
from rollout.fleet.cluster.leases import Lease, LeaseBook
from rollout.fleet.cluster.lengths import LengthHistory
from rollout.fleet.cluster.pool import WorkerPool
from rollout.fleet.cluster.router import Placement, Router
from rollout.speculation.drafters.history import History

__all__ = ["Dispatcher"]

_CANCEL_SECONDS = 5.0  # limit for a worker to answer a cancelled request


class Dispatcher:
    """Leases every request to a worker, again where it has to, and answers it once.

    Args:
        pool: pool of the workers.
        lease_seconds: seconds by which an answer may be later than predicted.
        history_tokens: most tokens of past answers to keep for drafts.
    """

    def __init__(self, pool: WorkerPool, *, lease_seconds: float, history_tokens: int = 0) -> None:
        self.lengths = LengthHistory()
        self.history = History(max_tokens=history_tokens)
        self.router = Router(self.lengths)
        self.leases = LeaseBook()
        self.num_answered = 0
        self._pool = pool
        self._lease_seconds = lease_seconds
        self._completions: list[Completion] = []

    @property
    def has_completions(self) -> bool:
        return bool(self._completions)

    def take_completions(self) -> list[Completion]:
        completions, self._completions = self._completions, []
        return completions

    def submit(self, requests: Sequence[Request]) -> None:
        """Let requests wait for `route`.

        Raises:
            ValueError: an id is in use.
        """
        for request in requests:
            self.leases.open(request)
            self.router.enqueue(request)

    def cancel(self, request_ids: Sequence[str], now: float) -> None:
        """Cancel requests. Their workers answer with the tokens they have; without an answer in time the completion is empty."""
        told: dict[str, list[str]] = {}
        for request_id in request_ids:
            if not self.leases.is_open(request_id):
                continue
            leases = self.leases.cancel(request_id)
            self.router.withdraw(request_id)
            if not leases:
                self._answer_cancelled(request_id)
            for lease in leases:
                self.leases.extend(lease, deadline=now + _CANCEL_SECONDS)
                told.setdefault(lease.worker_id, []).append(str(lease.lease_id))
        for worker_id, lease_ids in told.items():
            self._pool.cancel(worker_id, lease_ids)

    def route(self, now: float) -> None:
        """Send waiting requests to workers with room."""
        batches: dict[str, list[Request]] = {}
        for placement in self.router.place():
            batches.setdefault(placement.worker_id, []).append(self._lease(placement, now))
        for worker_id, requests in batches.items():
            self._pool.submit(worker_id, requests)

    def lease_again(self, now: float) -> None:
        """Lease overdue requests to another worker as well; without another worker, extend the lease."""
        for lease in self.leases.take_overdue(now):
            request_id = lease.request.request_id
            if not self.leases.is_open(request_id):
                continue  # answered just now, for another lease of it
            if self.leases.is_cancelled(request_id):
                self._answer_cancelled(request_id)
                continue
            holders = self.leases.holders(request_id)
            placement = self.router.place_one(lease.request, excluding=holders)
            if placement is None:
                self.leases.extend(lease, deadline=now + self._lease_seconds)
            else:
                self._pool.submit(placement.worker_id, [self._lease(placement, now)])

    def take(self, completion: Completion) -> None:
        """Record a worker's completion, whose request id is the lease's id."""
        reason = completion.finish_reason
        lease = self.leases.find(int(completion.request_id))
        if lease is None:
            self.leases.discard(reason)
            return
        request = lease.request
        if reason is FinishReason.ABORTED and not self.leases.is_cancelled(request.request_id):
            self._give_back(lease)
            return
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self.lengths.add(request.token_ids, len(completion.token_ids))
            version = max(completion.policy_versions, default=0)
            self.history.add(request, completion.token_ids, version)
        self._answer(replace(completion, request_id=request.request_id), by=lease)

    def lose(self, worker_id: str) -> int:
        """Give the requests of a lost worker back to the queue; returns their number."""
        self.router.remove_worker(worker_id)
        leases = self.leases.of_worker(worker_id)
        for lease in leases:
            self._give_back(lease)
        return len(leases)

    def _lease(self, placement: Placement, now: float) -> Request:
        """Lease the request to the worker; returns it with the lease's id as its request id."""
        request = placement.request
        deadline = now + placement.predicted_seconds + self._lease_seconds
        lease = self.leases.grant(request.request_id, placement.worker_id, deadline=deadline)
        return replace(request, request_id=str(lease.lease_id))

    def _give_back(self, lease: Lease) -> None:
        """A worker will not answer a lease."""
        self.router.ended(lease)
        if not self.leases.give_back(lease):
            return  # somebody else may
        if self.leases.is_cancelled(lease.request.request_id):
            self._answer_cancelled(lease.request.request_id)
        else:
            self.router.enqueue(lease.request, is_reissued=True)

    def _answer(self, completion: Completion, *, by: Lease | None = None) -> None:
        for lease in self.leases.close(completion.request_id, completion.finish_reason):
            self.router.ended(lease)
            if lease is not by:
                self._pool.cancel(lease.worker_id, [str(lease.lease_id)])
        self._completions.append(completion)
        self.num_answered += 1

    def _answer_cancelled(self, request_id: str) -> None:
        self._answer(
            Completion(
                request_id=request_id,
                token_ids=[],
                logprobs=[],
                policy_versions=[],
                finish_reason=FinishReason.ABORTED,
            )
        )
