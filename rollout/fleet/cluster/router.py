"""Chooses the worker for each request. Plain Python.

Waiting requests of one priority are ordered by expected time, the longest first, since the longest should not begin last. Each
goes to the worker that would be done with it first, of those with room in their KV cache; requests that fit nowhere
wait here, and go to the first worker with room.

    predicted seconds = (tokens queued there + expected tokens of the completion
                         + 1/4 of the prompt's tokens that are not cached there) / measured tokens per second

Computing a prompt that another worker already has cached counts double, since other requests wait for it. Siblings thus
stay together until waiting costs more time than the cache saves. Slow workers get work for the same time.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from rollout.core import Request
from rollout.fleet.cluster.leases import Lease
from rollout.fleet.cluster.lengths import LengthHistory

__all__ = ["Capacity", "Placement", "Router"]

_PREFILL_COST = 0.25  # of a prompt's token, beside one that is decoded
_UNMEASURED = 100.0  # tokens per second, while no worker has been measured
_LENGTH_MARGIN = 2.0  # of expected lengths; a surprise beyond it is the engine's to preempt
_MAX_PREFIXES = 1024  # groups whose prompts a worker is taken to remember

_Group = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Capacity of a worker."""

    num_blocks: int
    block_size: int
    max_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    request: Request
    worker_id: str
    predicted_seconds: float
    """Predicted time until the request is finished there."""


@dataclass(frozen=True, slots=True)
class _Share:
    """Part of a worker's capacity that one lease takes."""

    tokens: float
    blocks: int


@dataclass(slots=True)
class _Load:
    capacity: Capacity
    tokens_per_second: float | None = None
    num_sampled: int = 0
    """Tokens that its unfinished requests have already."""
    queued_tokens: float = 0.0
    num_blocks: int = 0
    shares: dict[str, _Share] = field(default_factory=dict)
    """Share of each request."""
    prefixes: OrderedDict[_Group, int] = field(default_factory=OrderedDict)
    """Tokens of a group's prompt that were computed here since the last update."""

    def has_room(self, share: _Share) -> bool:
        """Returns whether the request fits beside the others; always True for an idle worker, whose engine rejects what never fits."""
        has_blocks = self.num_blocks + share.blocks <= self.capacity.num_blocks
        return not self.shares or (has_blocks and len(self.shares) < self.capacity.max_requests)

    def num_cached(self, request: Request) -> int:
        known = self.prefixes.get(_group(request), 0)
        return min(known, len(request.token_ids))


class Router:
    """Knows what every worker has been given, and what waits.

    Args:
        lengths: lengths of past completions.
    """

    def __init__(self, lengths: LengthHistory) -> None:
        self._lengths = lengths
        self._loads: dict[str, _Load] = {}
        self._waiting: dict[str, Request] = {}
        self._heap: list[tuple[int, bool, float, int, str]] = []  # some of them withdrawn
        self._order = count()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def worker_ids(self) -> list[str]:
        """Workers that take requests."""
        return list(self._loads)

    def queued_tokens(self, worker_id: str) -> float:
        """Expected to be sampled or prefilled there yet."""
        load = self._loads[worker_id]
        return max(load.queued_tokens - load.num_sampled, 0.0)

    def add_worker(self, worker_id: str, capacity: Capacity) -> None:
        self._loads[worker_id] = _Load(capacity)

    def remove_worker(self, worker_id: str) -> None:
        """Give it nothing more; its leases are the caller's business."""
        self._loads.pop(worker_id, None)

    def measured(
        self, worker_id: str, *, tokens_per_second: float | None, num_sampled: int
    ) -> None:
        """A worker's report.

        Args:
            worker_id: ignored if it takes no requests.
            tokens_per_second: None before its first step.
            num_sampled: tokens that its unfinished requests have already.
        """
        if worker_id in self._loads:
            load = self._loads[worker_id]
            load.tokens_per_second, load.num_sampled = tokens_per_second, num_sampled

    def forget_prefixes(self) -> None:
        """The weights changed: no prompt is cached any more."""
        for load in self._loads.values():
            load.prefixes.clear()

    def enqueue(self, request: Request, *, is_reissued: bool = False) -> None:
        """Let a request wait; one that was begun elsewhere comes before the others."""
        expected = self._expected(request)
        urgency = (-request.priority, not is_reissued, -expected)
        key = (*urgency, next(self._order), request.request_id)
        heapq.heappush(self._heap, key)
        self._waiting[request.request_id] = request

    def withdraw(self, request_id: str) -> bool:
        """Takes a waiting request out; returns whether it was waiting here."""
        return self._waiting.pop(request_id, None) is not None

    def place(self) -> Iterator[Placement]:
        """Give out what waits, until it is empty or what comes next fits nowhere."""
        while self._heap:
            request_id = self._heap[0][-1]
            request = self._waiting.get(request_id)
            placement = None if request is None else self.place_one(request)
            if request is not None and placement is None:
                return
            heapq.heappop(self._heap)
            if placement is not None:
                del self._waiting[request_id]
                yield placement

    def place_one(self, request: Request, *, excluding: set[str] | None = None) -> Placement | None:
        """The best worker with room for a request, which is booked there; None if there is none."""
        shares = {w: self._share(request, load) for w, load in self._loads.items()}
        room = [
            worker_id
            for worker_id, share in shares.items()
            if worker_id not in (excluding or ()) and self._loads[worker_id].has_room(share)
        ]
        if not room:
            return None
        least = min(share.tokens for share in shares.values())

        def cost(worker_id: str) -> float:
            wasted = shares[worker_id].tokens - least
            return self._seconds(worker_id, shares[worker_id].tokens + wasted)

        best = min(room, key=cost)
        seconds = self._seconds(best, shares[best].tokens)
        self._book(request, self._loads[best], shares[best])
        return Placement(request=request, worker_id=best, predicted_seconds=seconds)

    def ended(self, lease: Lease) -> None:
        """A lease ended: its share is free again."""
        load = self._loads.get(lease.worker_id)
        if load is not None:
            share = load.shares.pop(lease.request.request_id)
            load.queued_tokens -= share.tokens
            load.num_blocks -= share.blocks

    def _book(self, request: Request, load: _Load, share: _Share) -> None:
        load.shares[request.request_id] = share
        load.queued_tokens += share.tokens
        load.num_blocks += share.blocks
        group = _group(request)
        load.prefixes[group] = max(len(request.token_ids), load.prefixes.pop(group, 0))
        if len(load.prefixes) > _MAX_PREFIXES:
            load.prefixes.popitem(last=False)

    def _share(self, request: Request, load: _Load) -> _Share:
        expected, cached = self._expected(request), load.num_cached(request)
        longest = min(_LENGTH_MARGIN * expected, request.params.max_tokens)
        size = load.capacity.block_size
        # full blocks of a prompt are shared, and the block after them is copied
        blocks = -(-(len(request.token_ids) + int(longest)) // size) - cached // size
        uncached = len(request.token_ids) - cached
        return _Share(tokens=expected + _PREFILL_COST * uncached, blocks=blocks)

    def _expected(self, request: Request) -> float:
        return self._lengths.expected(request.token_ids, max_tokens=request.params.max_tokens)

    def _seconds(self, worker_id: str, num_tokens: float) -> float:
        """Returns the seconds until a worker has finished its queue and so many more tokens."""
        speed = self._loads[worker_id].tokens_per_second or self._usual_speed()
        return (self.queued_tokens(worker_id) + num_tokens) / speed

    def _usual_speed(self) -> float:
        speeds = [load.tokens_per_second for load in self._loads.values()]
        known = [speed for speed in speeds if speed]
        return sum(known) / len(known) if known else _UNMEASURED


def _group(request: Request) -> _Group:
    return (request.key.seed, request.key.group_id)
