"""What the comparison with and without drafts runs: scenarios at so many requests in flight, and how long that takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rollout.config import Scenario
from rollout.engine.core import SamplingParams
from rollout.speculation.cost_table import CostTable, StepSize

__all__ = ["Cell", "expected_seconds", "make_cell", "make_cells"]

_GROUP_SIZE = 8
_LEAST_TOKENS = 16  # of a request
_MOST_RUNS = 8  # times `tokens_per_run`, where many requests are in flight
_TAIL_REQUESTS = 128
_UNPREDICTABLE_TEMPERATURE = 1.5
_PAIRED_SCENARIOS = (Scenario.SECOND_EPOCH, Scenario.UNPREDICTABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    scenario: Scenario
    concurrency: int
    """Requests in flight; the next one begins when one ends."""
    prompts: Sequence[Sequence[int]]
    group_size: int
    params: SamplingParams
    pairs: int = 1
    """Runs with and without drafts, in turn."""

    @property
    def has_history(self) -> bool:
        """Whether its prompts were answered before."""
        return self.scenario in (Scenario.SECOND_EPOCH, Scenario.TAIL)

    @property
    def num_requests(self) -> int:
        return len(self.prompts) * self.group_size


def make_cells(
    scenarios: Sequence[Scenario],
    concurrency: Sequence[int],
    *,
    paired: Sequence[int],
    pairs: int,
    prompt: Callable[[int], Sequence[int]],
    answered: Callable[[int], Sequence[int]],
    params: SamplingParams,
    tokens_per_run: int,
) -> list[Cell]:
    """Every scenario at every number of requests in flight; TAIL has all of its own at once.

    Args:
        scenarios: what to run.
        concurrency: requests in flight.
        paired: of those, where SECOND_EPOCH and UNPREDICTABLE run `pairs` times; TAIL always does, other cells run once.
        pairs: runs with and without drafts.
        prompt: the token ids of the i-th prompt.
        answered: the same, of prompts that have a history.
        params: how tokens are drawn.
        tokens_per_run: see `make_cell`.
    """
    cells = []
    for scenario in scenarios:
        is_tail = scenario is Scenario.TAIL
        for in_flight in [_TAIL_REQUESTS] if is_tail else concurrency:
            cell = make_cell(
                scenario, prompt, params, concurrency=in_flight, tokens_per_run=tokens_per_run
            )
            is_paired = is_tail or (scenario in _PAIRED_SCENARIOS and in_flight in paired)
            if cell.has_history:
                cell = replace(cell, prompts=[answered(i) for i in range(len(cell.prompts))])
            cells.append(replace(cell, pairs=pairs if is_paired else 1))
    return cells


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
        params = replace(params, temperature=_UNPREDICTABLE_TEMPERATURE)
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


def expected_seconds(cell: Cell, costs: CostTable) -> float:
    """Of all its runs, if drafts gain nothing and no completion ends early; those of a TAIL at all lengths alike."""
    prompts = sum(costs.seconds(StepSize(len(prompt), 0, 0)) for prompt in cell.prompts)
    in_flight, steps = (
        cell.concurrency,
        cell.num_requests / cell.concurrency * cell.params.max_tokens,
    )
    if cell.scenario is Scenario.TAIL:
        in_flight //= 2
    num_runs = 2 * cell.pairs + 1
    return num_runs * (prompts + steps * costs.seconds(StepSize(in_flight, 0, 0)))
