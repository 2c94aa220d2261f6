"""A fleet without an engine: random completions at once, for runs that only train."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from rollout.core import Completion, FinishReason, Request
from rollout.fleet.base import FleetStatus
from rollout.weights.update import WeightUpdate

__all__ = ["SyntheticFleet"]


class SyntheticFleet:
    """Answers every request with `max_tokens` random tokens, which depend only on its sample key."""

    is_concurrent = False

    def __init__(self, vocab_size: int, *, policy_version: int = 0) -> None:
        self._vocab_size = vocab_size
        self._policy_version = policy_version
        self._queue: list[Request] = []
        self._issued = 0

    def submit(self, requests: Sequence[Request]) -> None:
        self._queue += requests
        self._issued += len(requests)

    def poll(self, timeout_seconds: float) -> list[Completion]:
        requests, self._queue = self._queue, []
        return [self._complete(request) for request in requests]

    def cancel(self, request_ids: Sequence[str]) -> None:
        """Does nothing: no request is in flight between two polls."""

    def update_weights(self, update: WeightUpdate) -> None:
        self._policy_version = update.version

    def status(self) -> FleetStatus:
        running = len(self._queue)
        return FleetStatus(
            issued=self._issued,
            running=running,
            finished=self._issued - running,
            rejected=0,
            cancelled=0,
            policy_version=self._policy_version,
        )

    def take_metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Does nothing: no state is kept."""

    def _complete(self, request: Request) -> Completion:
        key = request.key
        source = random.Random(f"{key.seed}/{key.group_id}/{key.sample_index}")
        count = request.params.max_tokens
        token_ids = [source.randrange(self._vocab_size) for _ in range(count)]
        return Completion(
            request_id=request.request_id,
            token_ids=token_ids,
            logprobs=[0.0] * count,
            policy_versions=[self._policy_version] * count,
            finish_reason=FinishReason.LENGTH,
            text=" ".join(map(str, token_ids)),
        )
