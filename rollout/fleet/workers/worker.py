"""One engine of a fleet, wherever it runs."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rollout.core import Completion, Request
from rollout.fleet.cluster.report import WorkerReport
from rollout.fleet.cluster.router import Capacity
from rollout.fleet.workers.faults import FaultPoint, Faults
from rollout.weights.manifest import Manifest
from rollout.weights.staging import StagingArea

if TYPE_CHECKING:
    import torch

    from rollout.engine.engine import Engine

__all__ = ["Worker"]

_SPEED_MEMORY = 2048  # tokens that the measured speed looks back on, about


class Worker:
    """Steps an engine, takes updates for it, and knows how fast it is.

    `stage` and `verify` may be called by another thread while this one steps: they touch only the shadow weights. Every
    other method is for the thread that steps.

    Args:
        engine: the engine; only this worker uses it.
        faults: faults to inject.
        clock: returns the time in seconds.
        sleep: waits for some seconds; slows down a worker under a slowness fault.
    """

    def __init__(
        self,
        engine: "Engine",
        *,
        faults: Faults | None = None,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.engine = engine
        self._faults = faults or Faults()
        self._clock = clock
        self._sleep = sleep
        self._num_unfinished = 0
        self._num_answered_tokens = 0
        self._tokens_per_second: float | None = None
        self._num_turns = 0
        self._busy_seconds = 0.0

    @property
    def has_unfinished(self) -> bool:
        return self.engine.has_unfinished

    def submit(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self.engine.add_request(request)
            self._num_unfinished += 1

    def cancel(self, request_ids: Sequence[str]) -> None:
        """Ends requests; the next step answers each as aborted. Ignores ids of finished requests."""
        for request_id in request_ids:
            self.engine.abort(request_id)

    def restore(self, speculation: Mapping[str, Any]) -> None:
        """Takes over the result of `Speculator.state_dict`; does nothing without speculation."""
        if self.engine.speculator is not None:
            self.engine.speculator.load_state_dict(speculation)

    def turn(self) -> list[Completion]:
        """Runs one step of the engine, if there is something to compute; returns finished requests."""
        self._num_turns += 1
        if not self.engine.has_unfinished:
            return []
        self._faults.at(FaultPoint.STEP)
        start, num_before = self._clock(), self.engine.stats.num_sampled_tokens
        completions = self.engine.step()
        self._sleep((self._faults.slowness - 1) * (self._clock() - start))
        num_sampled = self.engine.stats.num_sampled_tokens - num_before
        seconds = self._clock() - start
        self._busy_seconds += seconds
        self._measure(num_sampled, seconds)
        self._num_unfinished -= len(completions)
        self._num_answered_tokens += sum(len(c.token_ids) for c in completions)
        return completions

    @property
    def is_commit_pending(self) -> bool:
        """Whether a commit waits for requests to end."""
        return self.engine.weights.is_commit_pending

    def stage(self, manifest: Manifest, receive: Callable[[Manifest, StagingArea], None]) -> None:
        """Takes an update into the shadow weights; after an error nothing is staged.

        Args:
            manifest: manifest of the update.
            receive: fills what is to be filled.

        Raises:
            ValueError: other names, shapes or dtypes, or no newer version.
            RuntimeError: the transport failed.
        """
        self._faults.at(FaultPoint.STAGE)
        area = self.engine.weights
        receive(manifest, _BrokenLink(area) if self._faults.at(FaultPoint.STAGED) else area)

    def verify(self) -> None:
        """Compares the staged weights with their digests.

        Raises:
            RuntimeError: it differs; nothing is staged any more.
        """
        self.engine.weights.verify()
        self._faults.at(FaultPoint.VERIFIED)

    def commit(self) -> None:
        """Makes the verified weights live, now or at the turn in which `engine.on_update` allows it."""
        self.engine.weights.commit_when_ready()
        self._num_turns += 1  # what is reported from now on is newer

    def rollback(self) -> None:
        """Drops the staged weights, if there are any."""
        if self.engine.weights.has_staged:
            self.engine.weights.rollback()

    def report(self) -> WorkerReport:
        engine, held = self.engine, self.engine.weights.held()
        speculator = engine.speculator
        return WorkerReport(
            policy_version=held.version,
            digest=held.digest,
            capacity=Capacity(
                num_blocks=engine.num_blocks,
                block_size=engine.config.block_size,
                max_requests=engine.config.max_requests,
            ),
            num_free_blocks=engine.num_free_blocks,
            num_unfinished=self._num_unfinished,
            num_sampled=engine.stats.num_sampled_tokens - self._num_answered_tokens,
            tokens_per_second=self._tokens_per_second,
            num_turns=self._num_turns,
            num_steps=engine.stats.num_steps,
            num_request_steps=engine.stats.num_request_steps,
            busy_seconds=self._busy_seconds,
            speculation=None if speculator is None else speculator.take_stats(),
        )

    def _measure(self, num_tokens: int, seconds: float) -> None:
        """Updates the measured speed, weighing each step by its tokens: a single request says little about a full batch."""
        if num_tokens and seconds > 0:
            speed = num_tokens / seconds
            before = self._tokens_per_second
            weight = 1.0 if before is None else min(1.0, num_tokens / _SPEED_MEMORY)
            self._tokens_per_second = (
                speed if before is None else before + weight * (speed - before)
            )


class _BrokenLink:
    """Changes one received value."""

    def __init__(self, area: StagingArea) -> None:
        self._area = area

    @contextmanager
    def staging(self, manifest: Manifest) -> Iterator[Mapping[str, "torch.Tensor"]]:
        with self._area.staging(manifest) as shadows:
            yield shadows
            next(iter(shadows.values())).view(-1)[0] += 1
