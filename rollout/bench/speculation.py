"""Times an engine with speculation against the same engine without, in turn, and holds them to the same outputs."""

import copy
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rollout.config import Scenario
from rollout.engine.core import Completion, Request, SampleKey, SamplingParams
from rollout.engine.engine import Engine
from rollout.speculation.speculator import Speculator

__all__ = ["Cell", "make_cell", "measure_speculation", "serve"]


_GROUP_SIZE = 8
_LEAST_TOKENS = 16  # of a request
_MOST_RUNS = 8  # times `tokens_per_run`, where many requests are in flight


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    scenario: Scenario
    concurrency: int
    """Requests in flight; the next one begins when one ends."""
    prompts: Sequence[Sequence[int]]
    group_size: int
    params: SamplingParams


def make_cell(
    scenario: Scenario,
    prompt: Callable[[int], Sequence[int]],
    params: SamplingParams,
    *,
    concurrency: int,
    tokens_per_run: int,
) -> Cell:
    """A scenario as requests: in groups of 8, as many as are in flight and more where those are few.

    Args:
        scenario: what they stand for.
        prompt: the token ids of the i-th prompt.
        params: how their tokens are drawn; `max_tokens` is lowered where many are in flight.
        concurrency: requests in flight.
        tokens_per_run: decoded by a run with few requests, if none ends early.
    """
    if scenario is Scenario.UNPREDICTABLE:
        params = replace(params, temperature=1.5)
    if scenario is not Scenario.TAIL:
        limit = max(_LEAST_TOKENS, _MOST_RUNS * tokens_per_run // concurrency)
        params = replace(params, max_tokens=min(params.max_tokens, limit))
    num_requests = max(concurrency, tokens_per_run // params.max_tokens)
    group_size = min(_GROUP_SIZE, num_requests)
    return Cell(
        scenario=scenario,
        concurrency=concurrency,
        prompts=[prompt(i) for i in range(-(-num_requests // group_size))],
        group_size=group_size,
        params=params,
    )


def measure_speculation(engine: Engine, cell: Cell, *, pairs: int) -> dict[str, Any]:
    """Run a cell with and without drafts, in turn.

    Args:
        engine: with a speculator, whose history and estimates are left as they were. Estimates go on from pair to pair.
        cell: what to run.
        pairs: each of other samples of the same prompts, with the history of one earlier epoch.

    Returns:
        tokens/s of both, and the ratio of each pair: median, least, greatest; what was proposed and kept.

    Raises:
        ValueError: the engine has no drafter.
        RuntimeError: a token or log-probability differs.
    """
    original = engine.speculator
    if original is None:
        raise ValueError("engine.speculation.drafter must not be OFF: there is nothing to compare")
    speculator = copy.deepcopy(original)
    engine.speculator = speculator
    if cell.scenario in (Scenario.SECOND_EPOCH, Scenario.TAIL):
        serve(engine, _requests(cell, epoch=0), cell.concurrency)
    drafters = speculator.drafters
    speculator.take_stats()
    off, on = _Runs(), _Runs()
    for epoch in range(1, pairs + 1):
        requests = _requests(cell, epoch=epoch)
        speculator.drafters = copy.deepcopy(drafters)  # with the history of epoch 0 alone
        for runs, used in ((off, None), (on, speculator))[:: 1 if epoch % 2 else -1]:
            runs.add(engine, requests, cell.concurrency, used)
        _check_same(off.last, on.last)
    engine.speculator = original
    ratios = [b / a for a, b in zip(off.speeds, on.speeds, strict=True)]
    return {
        "scenario": cell.scenario.value,
        "concurrency": cell.concurrency,
        "requests": len(cell.prompts) * cell.group_size,
        "pairs": pairs,
        "tokens_per_second_off": round(statistics.median(off.speeds), 1),
        "tokens_per_second_on": round(statistics.median(on.speeds), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "tokens_per_step_off": round(off.num_tokens / off.num_steps, 2),
        "tokens_per_step_on": round(on.num_tokens / on.num_steps, 2),
        "proposed_tokens": on.num_proposed,
        "accepted_tokens": on.num_accepted,
        "draft_time_share": round(on.draft_seconds / on.seconds, 4),
    }


def serve(engine: Engine, requests: Iterable[Request], concurrency: int) -> dict[str, Completion]:
    """All completions by request, with at most `concurrency` requests in the engine at a time."""
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
    """Of one side of the comparison."""

    speeds: list[float] = field(default_factory=list)  # tokens/s
    last: dict[str, Completion] = field(default_factory=dict)
    seconds: float = 0.0
    num_tokens: int = 0
    num_steps: int = 0
    num_proposed: int = 0
    num_accepted: int = 0
    draft_seconds: float = 0.0

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
            stats = speculator.take_stats()
            self.num_proposed += stats.num_proposed
            self.num_accepted += stats.num_accepted
            self.draft_seconds += stats.draft_seconds


def _requests(cell: Cell, *, epoch: int) -> list[Request]:
    """Siblings one after another; each epoch draws anew."""
    return [
        Request(
            request_id=f"{group_id}/{i}",
            token_ids=tuple(token_ids),
            params=cell.params,
            key=SampleKey(epoch, group_id, i),
        )
        for group_id, token_ids in enumerate(cell.prompts)
        for i in range(cell.group_size)
    ]


def _check_same(off: dict[str, Completion], on: dict[str, Completion]) -> None:
    for request_id, expected in off.items():
        got = on[request_id]
        if (got.token_ids, got.logprobs) != (expected.token_ids, expected.logprobs):
            raise RuntimeError(f"request {request_id} differs with drafts: nothing is reported")
