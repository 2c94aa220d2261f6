"""Times an engine with speculation and without, alternately, and checks that both give the same outputs."""

import copy
import statistics
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rollout.core import Completion, Request, SampleKey
from rollout.engine.engine import Engine
from rollout.speculation.speculator import Speculator
from rollout.stats import SpeculationStats
from scripts.bench.speculation.cells import Cell

__all__ = ["measure_speculation", "requests_of", "serve"]


def measure_speculation(
    engine: Engine, cell: Cell, *, past: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Run a cell with and without drafts alternately, after one warm-up run with drafts.

    Args:
        engine: an engine with a speculator; its history and estimates are restored afterwards. Pairs share estimates.
        cell: cell to run. Each pair draws other samples of the same prompts.
        past: state of a run's speculator, for cells with a history; None takes the first run's rollouts as the history.

    Returns:
        Tokens/s with and without drafts, and their ratio per pair (median, least, greatest); drafts proposed and kept;
        measured over expected tokens and seconds of steps with drafts.

    Raises:
        ValueError: the engine has no drafter.
        RuntimeError: a token or log-probability differs.
    """
    original = engine.speculator
    if not isinstance(original, Speculator):
        raise ValueError("engine.speculation.drafter must not be off: there is nothing to compare")
    speculator = copy.deepcopy(original)
    engine.speculator = speculator
    serve(engine, requests_of(cell, epoch=0), cell.concurrency)
    if not cell.has_history or past is not None:
        speculator.drafters = copy.deepcopy(original.drafters)
    if cell.has_history and past is not None:
        speculator.load_state_dict(past)
    drafters = speculator.drafters
    speculator.take_stats()
    off, on = _Runs(), _Runs()
    for epoch in range(1, cell.pairs + 1):
        requests = requests_of(cell, epoch=epoch)
        speculator.drafters = copy.deepcopy(drafters)  # with only the history from before
        for runs, used in ((off, None), (on, speculator))[:: 1 if epoch % 2 else -1]:
            runs.add(engine, requests, cell.concurrency, used)
        _check_same(off.last, on.last)
    engine.speculator = original
    ratios = [b / a for a, b in zip(off.speeds, on.speeds, strict=True)]
    return {
        "scenario": cell.scenario.value,
        "concurrency": cell.concurrency,
        "requests": cell.num_requests,
        "pairs": cell.pairs,
        "tokens_per_second_off": round(statistics.median(off.speeds), 1),
        "tokens_per_second_on": round(statistics.median(on.speeds), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "tokens_per_step_off": round(off.num_tokens / off.num_steps, 2),
        "tokens_per_step_on": round(on.num_tokens / on.num_steps, 2),
        "proposed_tokens": on.total("num_proposed"),
        "accepted_tokens": on.total("num_accepted"),
        "draft_time_share": round(on.total("draft_seconds") / on.seconds, 4),
        "tokens_over_expected": on.over_expected("tokens"),
        "seconds_over_expected": on.over_expected("seconds"),
    }


def serve(engine: Engine, requests: Iterable[Request], concurrency: int) -> dict[str, Completion]:
    """Runs requests and returns their completions by request, with at most `concurrency` requests in the engine at a time."""
    waiting = deque(requests)
    finished: dict[str, Completion] = {}
    num_running = 0
    while waiting or num_running:
        while waiting and num_running < concurrency:
            engine.add_request(waiting.popleft())
            num_running += 1
        for completion in engine.step():
            finished[completion.request_id] = completion
            num_running -= 1
    return finished


@dataclass(slots=True)
class _Runs:
    """Runs of one side of the comparison, with drafts or without."""

    speeds: list[float] = field(default_factory=list)  # tokens/s
    last: dict[str, Completion] = field(default_factory=dict)
    seconds: float = 0.0
    num_tokens: int = 0
    num_steps: int = 0
    stats: list[SpeculationStats] = field(default_factory=list)

    def add(
        self,
        engine: Engine,
        requests: Sequence[Request],
        concurrency: int,
        speculator: Speculator | None,
    ) -> None:
        engine.speculator = speculator
        engine.clear_prefix_cache()
        num_steps, start = engine.stats.num_steps, time.perf_counter()
        self.last = serve(engine, requests, concurrency)
        seconds = time.perf_counter() - start
        num_tokens = sum(len(c.token_ids) for c in self.last.values())
        self.speeds.append(num_tokens / seconds)
        self.seconds += seconds
        self.num_tokens += num_tokens
        self.num_steps += engine.stats.num_steps - num_steps
        if speculator is not None:
            self.stats.append(speculator.take_stats())

    def total(self, name: str) -> float:
        """Return the sum of one of the speculator's counts over all runs."""
        return sum(getattr(stats, name) for stats in self.stats)

    def over_expected(self, what: str) -> float | None:
        expected = self.total(f"expected_{what}")
        return round(self.total(f"compared_{what}") / expected, 3) if expected else None


def requests_of(cell: Cell, *, epoch: int) -> list[Request]:
    """Siblings one after another; each epoch draws anew."""
    return [
        Request(
            request_id=f"{group_id}/{i}",
            token_ids=tuple(token_ids),
            params=cell.params,
            key=SampleKey(cell.params.seed + epoch, group_id, i),
        )
        for group_id, token_ids in enumerate(cell.prompts)
        for i in range(cell.group_size)
    ]


def _check_same(off: dict[str, Completion], on: dict[str, Completion]) -> None:
    for request_id, expected in off.items():
        got = on[request_id]
        if (got.token_ids, got.logprobs) != (expected.token_ids, expected.logprobs):
            raise RuntimeError(f"request {request_id} differs with drafts: nothing is reported")
