"""The fleet of one: an engine in the caller's process, pumped by `poll`."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rollout.core import Completion, FinishReason, Request
from rollout.engine.engine import Engine
from rollout.fleet.base import FleetStatus
from rollout.stats import EngineStats
from rollout.weights.update import WeightUpdate

__all__ = ["InlineFleet"]


class InlineFleet:
    """Runs its engine inside `poll`, so that trainer and engine take turns on one device."""

    is_concurrent = False

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._issued = 0
        self._running: set[str] = set()
        self._finished: Counter[FinishReason] = Counter()
        self._kept: list[Completion] = []  # that ended within `update_weights`
        self._last_stats = EngineStats()  # as of the last `take_metrics`; so the seconds
        self._step_seconds = self._drain_seconds = 0.0

    def submit(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self.engine.add_request(request)
            self._running.add(request.request_id)
            self._issued += 1

    def poll(self, timeout_seconds: float) -> list[Completion]:
        deadline = time.monotonic() + timeout_seconds
        completions, self._kept = self._kept, []
        while self.engine.has_unfinished and not completions:
            completions = self._step()
            if time.monotonic() > deadline:
                break
        for completion in completions:
            self._running.remove(completion.request_id)
            self._finished[completion.finish_reason] += 1
        return completions

    def cancel(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self.engine.abort(request_id)

    def update_weights(self, update: WeightUpdate) -> None:
        self.engine.weights.stage(update)
        self.engine.weights.verify()  # which drops an update that is wrong
        try:
            self.engine.weights.commit_when_ready()
            while self.engine.weights.is_commit_pending:
                self._kept += self._step(is_draining=True)
        except RuntimeError:
            self.engine.weights.rollback()
            raise

    def status(self) -> FleetStatus:
        finished = self._finished
        return FleetStatus(
            issued=self._issued,
            running=len(self._running),
            finished=finished[FinishReason.STOP] + finished[FinishReason.LENGTH],
            rejected=finished[FinishReason.REJECTED],
            cancelled=finished[FinishReason.ABORTED],
            policy_version=self.engine.policy_version,
        )

    def take_metrics(self) -> dict[str, float]:
        stats, speculator = self.engine.stats, self.engine.speculator
        metrics = {} if speculator is None else speculator.take_stats().metrics()
        last, self._last_stats = self._last_stats, replace(stats)
        num_steps = stats.num_steps - last.num_steps
        if num_steps:
            num_request_steps = stats.num_request_steps - last.num_request_steps
            num_tokens = stats.num_sampled_tokens - last.num_sampled_tokens
            metrics["rollout/concurrency"] = num_request_steps / num_steps
            metrics["fleet/tokens_per_second"] = num_tokens / self._step_seconds
            metrics["fleet/busy_seconds"] = self._step_seconds
        if self._drain_seconds:
            metrics["rollout/drain_seconds"] = self._drain_seconds
        self._step_seconds = self._drain_seconds = 0.0
        return metrics

    def state_dict(self) -> dict[str, Any]:
        speculator = self.engine.speculator
        return {} if speculator is None else {"speculation": speculator.state_dict()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        if self.engine.speculator is not None and "speculation" in saved:
            self.engine.speculator.load_state_dict(saved["speculation"])

    def _step(self, *, is_draining: bool = False) -> list[Completion]:
        start = time.perf_counter()
        completions = self.engine.step()
        seconds = time.perf_counter() - start
        self._step_seconds += seconds
        self._drain_seconds += seconds if is_draining else 0.0
        return completions
