"""What drafts cost and what they are worth: costs, acceptance, allocation."""

import itertools
import random

import pytest

from rollout.engine.core import Batch, Chunk
from rollout.speculation.acceptance import Acceptance
from rollout.speculation.allocation import allocate, survival
from rollout.speculation.cost_table import CostTable
from rollout.speculation.drafters.drafter import NO_DRAFT, Draft
from rollout.speculation.drafters.suffix import SuffixDrafter
from rollout.speculation.speculator import Speculator
from tests.rollout.speculation.requests import make_state

# ---- costs


def test_costs_are_linear_between_measurements_and_beyond_them():
    table = CostTable({1: 10.0, 4: 16.0, 8: 40.0}, seconds_per_key=0.5)
    assert [table.seconds(n, 0) for n in (1, 2, 4, 6, 8, 10)] == [10, 12, 16, 28, 40, 52]
    assert table.seconds(2, 6) == 15


def test_costs_follow_what_steps_take_and_leave_the_rest_of_the_table_alone():
    table = CostTable({1: 10.0, 4: 16.0, 8: 40.0}, seconds_per_key=0.0)
    for _ in range(200):
        table.refresh(4, 0, 32.0)
    assert table.seconds(4, 0) == pytest.approx(32.0)
    assert table.seconds(1, 0) == 10
    assert table.seconds(8, 0) == 40


def test_a_step_of_no_time_at_all_leaves_costs_positive():
    table = CostTable({1: 1e-3, 2: 1e-3}, seconds_per_key=0.0)
    for _ in range(500):
        table.refresh(1, 0, -1.0)
    assert table.seconds(1, 0) > 0


# ---- acceptance


def draft(*confidences, match_length=3):
    return Draft(tuple(range(len(confidences))), confidences, match_length)


def test_rates_come_near_what_is_measured():
    rng, acceptance = random.Random(0), Acceptance()
    for i in range(2000):
        acceptance.observe(f"request {i}", draft(0.8), int(rng.random() < 0.6))
    (rate,) = acceptance.probabilities("new", draft(0.8))
    assert rate == pytest.approx(0.6, abs=0.08)


def test_tokens_behind_the_first_wrong_one_are_not_counted():
    acceptance = Acceptance()
    before = acceptance.probabilities("b", draft(1.0, 1.0, 1.0, match_length=1))
    for i in range(50):
        acceptance.observe(f"request {i}", draft(1.0, 1.0, 1.0, match_length=1), 0)
    after = acceptance.probabilities("b", draft(1.0, 1.0, 1.0, match_length=1))
    assert after[0] < before[0] / 2
    assert after[1:] == before[1:], "their matches are longer: other buckets"


def test_a_request_that_is_always_right_is_trusted_more_than_its_neighbours():
    acceptance = Acceptance()
    for _ in range(20):
        acceptance.observe("right", draft(0.5), 1)
        acceptance.observe("wrong", draft(0.5), 0)
    (right,), (wrong,) = (acceptance.probabilities(r, draft(0.5)) for r in ("right", "wrong"))
    assert right > 1.5 * wrong
    acceptance.forget("right")
    assert acceptance.probabilities("right", draft(0.5)) == acceptance.probabilities(
        "?", draft(0.5)
    )


# ---- allocation


def best_by_trying_all(probabilities, seconds, num_certain):
    def rate(lengths):
        expected = num_certain + sum(
            sum(survival(p)[:n]) for p, n in zip(probabilities, lengths, strict=True)
        )
        return expected / seconds(sum(lengths), 0)

    return max(map(rate, itertools.product(*(range(len(p) + 1) for p in probabilities))))


def rate_of(lengths, probabilities, seconds, num_certain):
    expected = num_certain + sum(
        sum(survival(p)[:n]) for p, n in zip(probabilities, lengths, strict=True)
    )
    return expected / seconds(sum(lengths), 0)


@pytest.mark.parametrize("seed", range(20))
def test_no_other_lengths_would_be_faster(seed):
    rng = random.Random(seed)
    probabilities = [
        [rng.random() for _ in range(rng.randrange(1, 5))] for _ in range(rng.randrange(1, 5))
    ]
    base, tile, row = rng.uniform(1, 20), rng.uniform(0, 3), rng.uniform(0, 1)

    def seconds(rows, _keys):
        return base + tile * -(-rows // 4) + row * rows

    lengths = allocate(
        probabilities, [0] * len(probabilities), seconds=seconds, num_certain=3, least_gain=1.0
    )
    best = best_by_trying_all(probabilities, seconds, 3)
    # tokens below a chance of 0.02 are left out
    assert rate_of(lengths, probabilities, seconds, 3) > best * 0.98


def test_rows_that_cost_as_much_as_the_first_are_not_worth_a_draft():
    lengths = allocate(
        [[0.9] * 8] * 4, [0] * 4, seconds=lambda rows, _: 4.0 + rows, num_certain=4, least_gain=1.0
    )
    assert lengths == [0] * 4


def test_free_rows_are_given_to_whoever_is_likeliest():
    def seconds(rows, _keys):
        return 1.0 if rows <= 3 else 10.0

    lengths = allocate(
        [[0.5, 0.5], [0.9, 0.9], []], [0] * 3, seconds=seconds, num_certain=3, least_gain=1.0
    )
    assert lengths == [1, 2, 0]


def test_keys_that_long_contexts_read_are_counted():
    lengths = allocate(
        [[0.9], [0.9]],
        [10_000, 10],
        seconds=lambda _, keys: 1.0 + keys / 1000,
        num_certain=2,
        least_gain=1.0,
    )
    assert lengths == [0, 1]


def test_a_gain_below_the_least_is_left_alone():
    arguments = {"seconds": lambda rows, _: 1.0 + 0.45 * rows, "num_certain": 2}
    assert allocate([[0.95]], [0], least_gain=1.0, **arguments) == [1]
    assert allocate([[0.95]], [0], least_gain=1.05, **arguments) == [0]


# ---- the speculator


class Oracle:
    """Drafts what it is told, and counts how often it is asked."""

    def __init__(self, *token_ids):
        self.token_ids = token_ids
        self.num_asked = 0

    def propose(self, states, *, max_tokens):
        self.num_asked += 1
        ids = self.token_ids[:max_tokens]
        made = Draft(ids, (1.0,) * len(ids), 8) if ids else NO_DRAFT
        return [made for _ in states]

    def finish(self, state, *, policy_version):
        pass


def speculator_of(*drafters, free_rows):
    """With rows that cost nothing, or as much as the first."""
    costs = {1: 1.0, 2: 1.0 if free_rows else 2.0}
    return Speculator(drafters, CostTable(costs, seconds_per_key=0.0), max_draft_tokens=4)


def decoding(*states):
    return Batch(tuple(Chunk(state, 1) for state in states), ())


def step(speculator, states, sampled):
    """One step; returns the drafts it ran with."""
    batch = decoding(*states)
    drafts = speculator.plan(batch, dict.fromkeys(states, 10))
    chunks = tuple(Chunk(state, 1, draft=tuple(drafts.get(state, ()))) for state in states)
    speculator._costs.refresh = lambda *_: None  # the clock of a test says nothing
    speculator.observe(Batch(chunks, ()), dict.fromkeys(states, sampled))
    return drafts


def test_free_rows_are_drafted_and_dear_ones_never():
    state = make_state("a", [1, 2])
    assert list(step(speculator_of(Oracle(7, 8), free_rows=True), [state], [7, 8, 9]).values()) == [
        (7, 8)
    ]
    oracle = Oracle(7, 8)
    dear = speculator_of(oracle, free_rows=False)
    for _ in range(100):
        assert not step(dear, [state], [7])
    assert 1 <= oracle.num_asked <= 4, "now and then, to learn"


def test_a_drafter_that_is_always_wrong_is_soon_left_alone_and_tried_again_when_it_is_right():
    state = make_state("a", [1, 2])
    speculator = speculator_of(Oracle(7, 8), free_rows=True)
    speculator._costs = CostTable({1: 1.0, 2: 1.2}, seconds_per_key=0.0)
    lengths = [len(next(iter(step(speculator, [state], [5]).values()), ())) for _ in range(100)]
    assert lengths[0] > 0
    assert not any(lengths[50:])
    lengths = [
        len(next(iter(step(speculator, [state], [7, 8, 5]).values()), ())) for _ in range(2000)
    ]
    assert lengths[-1] > 0, "drafts that are not verified are compared all the same"


def test_the_drafter_that_is_worth_more_is_taken():
    state = make_state("a", [1, 2])
    speculator = speculator_of(Oracle(7), Oracle(8), free_rows=True)
    drafts = [tuple(step(speculator, [state], [8]).values()) for _ in range(60)]
    assert drafts[0] == ((7,),)
    assert drafts[-1] == ((8,),)


def test_what_was_proposed_and_kept_is_counted_by_position():
    state = make_state("a", [1, 2])
    speculator = speculator_of(Oracle(7, 8, 9), free_rows=True)
    step(speculator, [state], [7, 8, 5])
    stats = speculator.take_stats()
    assert (stats.num_proposed, stats.num_accepted) == (3, 2)
    assert stats.accepted_by_position == [1, 1]
    metrics = stats.metrics()
    assert metrics["speculation/acceptance_rate"] == pytest.approx(2 / 3)
    assert metrics["speculation/acceptance_at_3"] == 0
    assert speculator.take_stats().num_proposed == 0


def test_a_small_share_of_steps_runs_without_drafts_to_know_what_they_gain():
    state = make_state("a", [1, 2])
    speculator = speculator_of(Oracle(7), free_rows=True)
    drafted = [bool(step(speculator, [state], [7, 8])) for _ in range(640)]
    assert 5 <= drafted.count(False) <= 15
    metrics = speculator.take_stats().metrics()
    assert metrics["speculation/tokens_per_second_with"] > 0
    assert metrics["speculation/tokens_per_second_without"] > 0


def test_what_one_engine_kept_another_takes_up():
    first, second = (
        speculator_of(SuffixDrafter(history_tokens=100), free_rows=True) for _ in range(2)
    )
    first.finish(make_state("a", [1, 2], [5, 6, 7]), policy_version=2)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    speculator_of(Oracle(7), free_rows=True).load_state_dict({"SuffixDrafter": {}})
