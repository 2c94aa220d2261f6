"""What drafts cost and what they are worth: costs, acceptance, allocation."""

import itertools
import random

import pytest

from rollout.core import Chunk, StepBatch
from rollout.speculation.acceptance import Acceptance
from rollout.speculation.allocation import Decoding, allocate, survival
from rollout.speculation.cost_table import CostTable, StepSize, step_size
from rollout.speculation.drafters.drafter import NO_DRAFT, Draft, Drafter
from rollout.speculation.drafters.suffix import SuffixDrafter
from rollout.speculation.speculator import Speculator
from tests.rollout.speculation.requests import make_state

# ---- costs


def size(rows, keys=0, row_keys=0):
    return StepSize(rows, keys, row_keys)


def test_costs_are_linear_between_measurements_and_beyond_them():
    table = CostTable({1: 10.0, 4: 16.0, 8: 40.0}, seconds_per_key=0.5, seconds_per_row_key=0.25)
    assert [table.seconds(size(n)) for n in (1, 2, 4, 6, 8, 10)] == [10, 12, 16, 28, 40, 52]
    assert table.seconds(size(2, 6, 4)) == 16
    assert size(2, 6, 4).with_row(5) == size(3, 6, 9)


def test_costs_follow_what_steps_take_and_leave_the_rest_of_the_table_alone():
    table = CostTable({1: 10.0, 4: 16.0, 8: 40.0})
    for _ in range(200):
        table.refresh(size(4), 32.0)
    assert table.seconds(size(4)) == pytest.approx(32.0)
    assert table.seconds(size(1)) == 10
    assert table.seconds(size(8)) == 40


def test_a_step_of_no_time_at_all_leaves_costs_positive():
    table = CostTable({1: 1e-3, 2: 1e-3})
    for _ in range(500):
        table.refresh(size(1), -1.0)
    assert table.seconds(size(1)) > 0


def test_one_hiccup_does_not_make_rows_dear():
    table = CostTable({1: 1.0, 2: 1.0})
    table.refresh(size(1), 1e6)
    assert table.seconds(size(1)) < 1.2


def test_keys_that_cost_less_than_was_measured_do_not_make_rows_look_cheap():
    true = CostTable({1: 10.0, 64: 73.0}, seconds_per_key=0.001)
    table = CostTable({1: 10.0, 64: 73.0}, seconds_per_key=0.003)
    sizes = [size(rows, keys=rows * context) for rows in (8, 24, 48) for context in (300, 400)]
    for step in sizes * 40:
        table.refresh(step, true.seconds(step))

    def row_seconds(costs):
        """Of one draft row more, beside what the step costs without: what a draft is judged by."""
        step = size(48, keys=48 * 350)
        return costs.seconds(step.with_rows(16, 0)) / costs.seconds(step)

    assert row_seconds(table) == pytest.approx(row_seconds(true), rel=0.05)


def test_the_blocks_that_siblings_share_are_read_once():
    states = [make_state((1,) * 40, "a"), make_state((1,) * 40, "b"), make_state((2,) * 40, "c")]
    for state, table in zip(states, ([0, 1], [0, 2], [3, 4]), strict=True):
        state.num_computed, state.block_table = 39, table
    chunks = [Chunk(state, 1) for state in states[:2]] + [Chunk(states[2], 1, draft=(5, 6))]
    assert step_size(chunks) == StepSize(rows=5, keys=40 + 20 + 40, row_keys=20 + 2 * 40)


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


def rate_of(lengths, probabilities, costs, num_certain):
    expected = num_certain + sum(
        sum(survival(p)[:n]) for p, n in zip(probabilities, lengths, strict=True)
    )
    return expected / costs.seconds(size(num_certain + sum(lengths)))


@pytest.mark.parametrize("seed", range(20))
def test_no_other_lengths_would_be_faster(seed):
    rng = random.Random(seed)
    probabilities = [
        [rng.random() for _ in range(rng.randrange(1, 5))] for _ in range(rng.randrange(1, 5))
    ]
    # tiles of four rows: a step up, then nearly flat
    base, tile, row = rng.uniform(1, 20), rng.uniform(0, 3), rng.uniform(0, 1)
    costs = CostTable({n: base + tile * -(-n // 4) + row * n for n in range(1, 24)})
    lengths = allocate(
        probabilities,
        [0] * len(probabilities),
        decoding=Decoding(costs=costs, size=size(3), num_tokens=3),
        least_gain=1.0,
    )
    every = itertools.product(*(range(len(p) + 1) for p in probabilities))
    best = max(rate_of(other, probabilities, costs, 3) for other in every)
    # tokens below a chance of 0.02 are left out
    assert rate_of(lengths, probabilities, costs, 3) > best * 0.98


def lengths_of(probabilities, costs, *, contexts=None, num_certain=None, least_gain=1.0):
    num_certain = len(probabilities) if num_certain is None else num_certain
    return allocate(
        probabilities,
        contexts or [0] * len(probabilities),
        decoding=Decoding(costs=costs, size=size(num_certain), num_tokens=num_certain),
        least_gain=least_gain,
    )


def test_rows_that_cost_as_much_as_the_first_are_not_worth_a_draft():
    assert lengths_of([[0.9] * 8] * 4, CostTable({1: 1.0, 2: 2.0})) == [0] * 4


def test_free_rows_are_given_to_whoever_is_likeliest():
    costs = CostTable({1: 1.0, 6: 1.0, 7: 10.0})
    assert lengths_of([[0.5, 0.5], [0.9, 0.9], []], costs) == [1, 2, 0]


def test_rows_of_long_contexts_come_last():
    costs = CostTable({1: 1.0, 2: 1.0}, seconds_per_row_key=1e-3)
    assert lengths_of([[0.9], [0.9]], costs, contexts=[10_000, 10]) == [0, 1]


def test_a_gain_below_the_least_is_left_alone():
    costs = CostTable({2: 1.0, 3: 1.45})
    assert lengths_of([[0.95]], costs, num_certain=2) == [1]
    assert lengths_of([[0.95]], costs, num_certain=2, least_gain=1.05) == [0]


# ---- the speculator


class Oracle(Drafter):
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


def speculator_of(*drafters, free_rows, eos_token_ids=()):
    """With rows that cost nothing, or as much as the first."""
    costs = CostTable({1: 1.0, 2: 1.0 if free_rows else 2.0})
    return Speculator(drafters, costs, max_draft_tokens=4, eos_token_ids=eos_token_ids)


def decoding(*states):
    return StepBatch(tuple(Chunk(state, 1) for state in states), ())


def step(speculator, states, sampled):
    """One step; returns the drafts it ran with."""
    batch = decoding(*states)
    drafts = speculator.plan(batch, dict.fromkeys(states, 10))
    chunks = tuple(Chunk(state, 1, draft=tuple(drafts.get(state, ()))) for state in states)
    speculator._costs.refresh = lambda *_: None  # the clock of a test says nothing
    speculator.begin(StepBatch(chunks, ()))
    speculator.observe(StepBatch(chunks, ()), dict.fromkeys(states, sampled))
    return drafts


def test_free_rows_are_drafted_and_dear_ones_never():
    state = make_state("a", [1, 2])
    free = speculator_of(Oracle(7, 8), free_rows=True)
    drafts = [tuple(step(free, [state], [7, 8, 9]).values()) for _ in range(20)]
    assert drafts[-1] == ((7, 8),)
    oracle = Oracle(7, 8)
    dear = speculator_of(oracle, free_rows=False)
    for _ in range(100):
        assert not step(dear, [state], [7])
    assert 5 <= oracle.num_asked <= 20, "now and then, to learn"


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, (7, 8)),
        ({"stop_token_ids": (8,)}, (7,)),
        ({"ignore_eos": True}, (7, 8, 9, 6)),
        ({"ignore_eos": True, "stop_token_ids": (7,)}, None),
    ],
)
def test_a_token_that_ends_its_request_is_not_verified_and_still_learned_from(params, expected):
    state = make_state("a", [1, 2], **params)
    speculator = speculator_of(Oracle(7, 8, 9, 6), free_rows=True, eos_token_ids=(9,))
    drafts = [step(speculator, [state], [7, 8, 9]).get(state) for _ in range(20)]
    assert drafts[-1] == expected
    assert sum(speculator._acceptance[0]._kept.values()) > 0


def test_a_prompt_in_the_step_makes_no_draft_worth_its_rows():
    oracle, state = Oracle(7, 8), make_state("a", [1, 2])
    speculator = speculator_of(oracle, free_rows=True)
    for _ in range(100):
        step(speculator, [state], [7, 8, 9])
    assert step(speculator, [state], [7, 8, 9])
    # a row costs as much as it can bring; beside 100 rows of a prompt a token costs 101 times that
    speculator._costs = CostTable({1: 1.0, 1001: 1001.0})
    prompt = make_state("b", range(100))
    prompt.num_computed = 0
    batch = StepBatch((Chunk(state, 1), Chunk(prompt, 100)), ())
    for _ in range(10):
        assert not speculator.plan(batch, {state: 10})
    speculator._costs = CostTable({1: 1.0, 2: 1.0, 101: 100.0, 103: 100.0})
    assert any(speculator.plan(batch, {state: 10}) for _ in range(10)), (
        "where rows are free they are"
    )


def test_while_drafts_do_not_pay_a_few_requests_are_asked_for_and_each_in_its_turn():
    asked = []

    class Noted(Oracle):
        def propose(self, states, *, max_tokens):
            asked.append([state.request.request_id for state in states])
            return super().propose(states, max_tokens=max_tokens)

    states = [make_state(str(i), [1, 2]) for i in range(40)]
    speculator = speculator_of(Noted(7), free_rows=False)
    for _ in range(200):
        step(speculator, states, [7])
    assert max(map(len, asked)) == 16
    assert len(set(itertools.chain(*asked))) == 40


def test_a_drafter_is_trusted_once_it_was_right_and_left_alone_while_it_is_wrong():
    state = make_state("a", [1, 2])
    speculator = speculator_of(Oracle(7, 8), free_rows=True)
    speculator._costs = CostTable({1: 1.0, 2: 1.2})

    def drafted(sampled, num_steps):
        return [
            sum(map(len, step(speculator, [state], sampled).values())) for _ in range(num_steps)
        ]

    assert not any(drafted([5], 100)), "what was never right is not verified"
    assert drafted([7, 8, 5], 2000)[-1] > 0, "unverified drafts are compared all the same"
    assert not any(drafted([5], 2000)[-100:])


def test_the_drafter_that_is_worth_more_is_taken():
    state = make_state("a", [1, 2])
    speculator = speculator_of(Oracle(7), Oracle(8), free_rows=True)
    drafts = [tuple(step(speculator, [state], [8]).values()) for _ in range(60)]
    assert ((8,),) in drafts[-3:]
    drafts = [tuple(step(speculator, [state], [7]).values()) for _ in range(3000)]
    assert ((7,),) in drafts[-3:], "and the other one, once it is right"


def test_what_was_proposed_and_kept_is_counted_by_position():
    state = make_state("a", [1, 2])
    speculator = speculator_of(Oracle(7, 8, 9), free_rows=True)
    for _ in range(30):
        step(speculator, [state], [7, 8, 9, 5])
    speculator.take_stats()
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
    for _ in range(60):
        step(speculator, [state], [7, 8])  # it learns that the draft is right
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
    first._acceptance[0].observe("a", draft(0.5, 0.9), 1)
    assert first._acceptance[0].greatest() > 0.05
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert second._acceptance[0].greatest() == first._acceptance[0].greatest()
    speculator_of(Oracle(7), free_rows=True).load_state_dict({"SuffixDrafter": {}})
