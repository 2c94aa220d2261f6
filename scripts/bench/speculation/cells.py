"""Cells of the comparison with and without drafts: a scenario at a number of requests in flight, with its expected duration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rollout.config import Scenario
from rollout.core import SamplingParams
from rollout.speculation.cost_table import CostTable, StepSize

__all__ = ["Cell", "expected_seconds", "make_cell", "make_cells"]

_GROUP_SIZE = 8
_LEAST_TOKENS = 16  # of a request
_MOST_RUNS = 8  # times `tokens_per_run`, where many requests are in flight
_UNPREDICTABLE_TEMPERATURE = 1.5
_PAIRED_SCENARIOS = (Scenario.second_epoch, Scenario.unpredictable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    scenario: Scenario
    concurrency: int
    """Requests in flight; the next one begins when one ends."""
    prompts: Sequence[Sequence[int]]
    group_size: int
    params: SamplingParams
    expected_tokens: int
    """Expected tokens of one completion."""
    pairs: int = 1
    """Runs with and without drafts, in turn."""

    @property
    def has_history(self) -> bool:
        """Whether its prompts were answered before."""
        return self.scenario in (Scenario.second_epoch, Scenario.tail)

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
    tail_requests: int,
    mean_tokens: float,
) -> list[Cell]:
    """Make a cell for every scenario and number of requests in flight; `tail` has `tail_requests` at once.

    Args:
        scenarios: scenarios to run.
        concurrency: numbers of requests in flight.
        paired: numbers at which `second_epoch` and `unpredictable` run `pairs` times; `tail` always does, other cells run once.
        pairs: runs with and without drafts.
        prompt: the token ids of the i-th prompt.
        answered: the token ids of the i-th prompt with a history.
        params: how tokens are drawn.
        tokens_per_run: see `make_cell`.
        tail_requests: number of requests of `tail`.
        mean_tokens: see `make_cell`.
    """
    cells = []
    for scenario in scenarios:
        is_tail = scenario is Scenario.tail
        for in_flight in [tail_requests] if is_tail else concurrency:
            cell = make_cell(
                scenario,
                prompt,
                params,
                concurrency=in_flight,
                tokens_per_run=tokens_per_run,
                mean_tokens=mean_tokens,
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
    mean_tokens: float,
) -> Cell:
    """Make the requests of a scenario in groups of 8: as many as are in flight, or more if those are few.

    Args:
        scenario: scenario that the requests represent.
        prompt: the token ids of the i-th prompt.
        params: how their tokens are drawn; `max_tokens` is lowered where many are in flight.
        concurrency: requests in flight.
        tokens_per_run: approximate number of tokens decoded by a run with few requests.
        mean_tokens: mean tokens of a completion; `unpredictable` completions run to `max_tokens`.
    """
    if scenario is Scenario.unpredictable:
        params = replace(params, temperature=_UNPREDICTABLE_TEMPERATURE)
    if scenario is not Scenario.tail:
        limit = max(_LEAST_TOKENS, _MOST_RUNS * tokens_per_run // concurrency)
        params = replace(params, max_tokens=min(params.max_tokens, limit))
    expected_tokens = params.max_tokens
    if scenario is not Scenario.unpredictable:
        expected_tokens = max(1, min(expected_tokens, round(mean_tokens)))
    num_requests = max(concurrency, tokens_per_run // expected_tokens)
    group_size = min(_GROUP_SIZE, num_requests)
    return Cell(
        scenario=scenario,
        concurrency=concurrency,
        prompts=[prompt(i) for i in range(-(-num_requests // group_size))],
        group_size=group_size,
        params=params,
        expected_tokens=expected_tokens,
    )


def expected_seconds(cell: Cell, costs: CostTable) -> float:
    """Return the expected seconds of all runs of a cell if drafts gain nothing. Lengths of a `tail` are taken as uniform, so that half of its
    completions are in flight on average."""
    prompts = sum(costs.seconds(StepSize(len(prompt), 0, 0)) for prompt in cell.prompts)
    in_flight, steps = (
        cell.concurrency,
        cell.num_requests / cell.concurrency * cell.expected_tokens,
    )
    if cell.scenario is Scenario.tail:
        in_flight, steps = in_flight // 2, min(2 * steps, cell.params.max_tokens)
    num_runs = 2 * cell.pairs + 1
    return num_runs * (prompts + steps * costs.seconds(StepSize(in_flight, 0, 0)))
