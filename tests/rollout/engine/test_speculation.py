"""I2: with any drafter, however wrong, the same tokens and log-probabilities as without."""

import random

import pytest
import torch

from rollout.config import DrafterKind, SpeculationConfig, StorageDtype
from rollout.core import FinishReason, RequestState
from rollout.speculation.cost_table import CostTable, StepSize
from rollout.speculation.drafters.drafter import NO_DRAFT, Draft, Drafter
from rollout.speculation.drafters.suffix import SuffixDrafter
from rollout.speculation.speculator import Speculator
from rollout.weights.update import make_update
from tests.rollout.engine.engines import (
    draws,
    make_engine,
    make_group,
    make_request,
    prompt,
    put_in_force,
    run,
)

pytestmark = pytest.mark.usefixtures("one_thread")

VOCAB_SIZE = 250  # of the tiny models; draws are below


class Scripted(Drafter):
    """Drafts a request's own future, with each token wrong at some rate; and any number of tokens too many."""

    def __init__(self, futures, *, error_rate, seed=0, extra=0):
        self._futures = futures
        self._error_rate = error_rate
        self._rng = random.Random(seed)
        self._extra = extra

    def propose(self, states, *, max_tokens):
        return [self._propose(state, max_tokens) for state in states]

    def _propose(self, state, max_tokens):
        future = self._futures[state.request.request_id][state.num_output :]
        future = [*future, *(self._rng.randrange(VOCAB_SIZE) for _ in range(self._extra))]
        length = self._rng.randrange(max_tokens + 1)
        token_ids = tuple(
            self._rng.randrange(VOCAB_SIZE) if self._rng.random() < self._error_rate else token_id
            for token_id in future[:length]
        )
        return Draft(token_ids, (1.0,) * len(token_ids), 3) if token_ids else NO_DRAFT

    def finish(self, state, *, policy_version):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, saved):
        pass


def make_eager(speculator):
    """Rows are free and drafts never doubted, so whatever is drafted is verified."""
    costs = CostTable({1: 1.0, 1000: 1.0})
    costs.refresh = lambda *_: None
    speculator._costs = costs
    for acceptance in speculator._acceptance:
        acceptance._rate = lambda _: 0.99
        acceptance.greatest = lambda: 0.99
        acceptance.mean = lambda: 0.99
    return speculator


def eager(drafter, *, max_draft_tokens=7):
    costs = CostTable({1: 1.0, 2: 1.0})
    return make_eager(Speculator([drafter], costs, max_draft_tokens=max_draft_tokens))


def mixed():
    """Groups, prompts past a key block, greedy and truncated sampling, ends of every kind."""
    return [
        *make_group(0, prompt(40), size=4, max_tokens=30),
        *make_group(1, prompt(70, start=5), size=2, temperature=0.7, top_k=20, max_tokens=25),
        make_request("top p", prompt(9, start=1), group_id=2, top_p=0.8, min_p=0.02, max_tokens=33),
        make_request("greedy", prompt(7, start=2), group_id=3, temperature=0, max_tokens=40),
        make_request("one", prompt(5, start=3), group_id=4, max_tokens=1),
        make_request("two", prompt(5, start=4), group_id=5, max_tokens=2),
        make_request("eos", prompt(12, start=6), group_id=6, max_tokens=60, ignore_eos=False),
        make_request(
            "stop id",
            prompt(12, start=7),
            group_id=7,
            max_tokens=60,
            stop_token_ids=tuple(range(8)),
        ),
        make_request(
            "stop", prompt(12, start=8), group_id=8, max_tokens=60, stop=("e", "a", "\x00")
        ),
        make_request("full", prompt(100, start=9), group_id=9, max_tokens=500),
    ]


LIMITS = {"max_context_tokens": 160, "eos_token_ids": tuple(range(0, 250, 23))}


@pytest.fixture(scope="module")
def without(llama):
    """What the requests give without drafts."""
    return run(make_engine(llama, **LIMITS), mixed())


def futures_of(completions):
    return {name: completion.token_ids for name, completion in completions.items()}


def assert_same(completions, expected):
    assert draws(completions) == draws(expected)
    for name, completion in completions.items():
        assert completion.finish_reason is expected[name].finish_reason
        assert completion.text == expected[name].text
        assert completion.policy_versions == expected[name].policy_versions


@pytest.mark.parametrize("error_rate", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_random_drafts_change_nothing(llama, without, error_rate, seed):
    engine = make_engine(llama, **LIMITS)
    engine.speculator = eager(
        Scripted(futures_of(without), error_rate=error_rate, seed=seed, extra=5)
    )
    assert_same(run(engine, mixed()), without)
    stats = engine.speculator.stats
    assert stats.num_proposed > 50
    if error_rate == 0:
        assert stats.num_accepted > 0.5 * stats.num_proposed
        assert engine.stats.num_steps < 200, "fewer than without"
    if error_rate == 1:
        assert stats.num_accepted < 0.1 * stats.num_proposed


@pytest.mark.parametrize("num_blocks", [14, 17, 24])
def test_drafts_change_nothing_when_blocks_are_short_and_never_make_it_worse(
    llama, without, num_blocks
):
    engine = make_engine(llama, num_blocks=num_blocks, **LIMITS)
    engine.speculator = eager(Scripted(futures_of(without), error_rate=0.3))
    assert_same(run(engine, mixed()), without)
    assert engine.stats.num_preemptions > 0 or num_blocks > 14


@pytest.mark.parametrize(
    "limits",
    [
        {"prefix_cache": False},
        {"max_tokens_per_step": 17},
        {"block_size": 64},
        {"max_requests": 3},
    ],
)
def test_drafts_change_nothing_under_any_limits(llama, without, limits):
    engine = make_engine(llama, **(LIMITS | limits))
    engine.speculator = eager(Scripted(futures_of(without), error_rate=0.2))
    assert_same(run(engine, mixed()), without)


def test_prompts_found_in_the_prefix_cache_are_drafted_for_like_others(llama, without):
    engine = make_engine(llama, **LIMITS)
    engine.speculator = eager(Scripted(futures_of(without), error_rate=0.2))
    assert_same(run(engine, mixed()), without)
    assert_same(run(engine, mixed()), without)
    assert engine.stats.num_prefix_hit_tokens > 0


@pytest.mark.parametrize(
    "limits", [{"weight_dtype": StorageDtype.int8}, {"kv_dtype": StorageDtype.int8}]
)
def test_drafts_change_nothing_in_8_bits(llama, limits):
    limits = LIMITS | limits
    expected = run(make_engine(llama, **limits), mixed())
    engine = make_engine(llama, **limits)
    engine.speculator = eager(Scripted(futures_of(expected), error_rate=0.2))
    assert_same(run(engine, mixed()), expected)


def test_drafts_change_nothing_in_bfloat16(llama):
    limits = LIMITS | {"dtype": torch.bfloat16}
    expected = run(make_engine(llama, **limits), mixed())
    engine = make_engine(llama, **limits)
    engine.speculator = eager(Scripted(futures_of(expected), error_rate=0.2))
    assert_same(run(engine, mixed()), expected)


def test_a_draft_past_the_end_of_sequence_ends_where_the_sequence_does(llama, without):
    ended = [name for name, c in without.items() if c.finish_reason is FinishReason.STOP]
    assert {"eos", "stop", "stop id"} <= set(ended)
    engine = make_engine(llama, **LIMITS)
    engine.speculator = eager(
        Scripted(futures_of(without), error_rate=0.0, extra=20), max_draft_tokens=64
    )
    assert_same(run(engine, mixed()), without)


def test_the_blocks_of_rejected_tokens_go_back_at_once(llama, without):
    engine = make_engine(llama, **LIMITS)
    engine.speculator = eager(
        Scripted(futures_of(without), error_rate=1.0, extra=99), max_draft_tokens=99
    )
    for request in mixed()[:6]:
        engine.add_request(request)
    while engine.has_unfinished:
        engine.step()
        engine.check_integrity()
        for state in engine._states.values():
            assert len(state.block_table) <= engine.blocks.blocks_for(len(state.token_ids))


def test_an_abort_between_two_steps_keeps_what_was_verified(llama, without):
    engine = make_engine(llama, **LIMITS)
    engine.speculator = eager(Scripted(futures_of(without), error_rate=0.3))
    for request in mixed():
        engine.add_request(request)
    for _ in range(6):
        engine.step()
    engine.abort("greedy")
    (aborted,) = [c for c in engine.step() if c.request_id == "greedy"]
    assert aborted.finish_reason is FinishReason.ABORTED
    assert aborted.token_ids
    assert aborted.token_ids == without["greedy"].token_ids[: len(aborted.token_ids)]


def test_new_weights_are_drafted_for_with_what_the_old_ones_said(llama, other_llama):
    requests = make_group(0, prompt(20), size=4, max_tokens=40)
    config = SpeculationConfig(drafter=DrafterKind.suffix)
    engine = make_engine(llama, speculation=config)
    run(engine, requests)
    update = make_update(1, make_engine(other_llama).decoder.hf_tensors())
    put_in_force(engine, update)
    plain = make_engine(llama)
    put_in_force(plain, update)
    assert_same(run(engine, requests), run(plain, requests))


def test_whoever_draws_the_same_again_is_foretold_at_every_position(llama):
    """Of 8 siblings that had two tokens to choose from each time, all known; only the uniforms tell them apart."""
    group = make_group(0, prompt(20), size=8, top_k=2, max_tokens=12)
    completions = run(make_engine(llama), group)
    drafter = SuffixDrafter(history_tokens=1000)
    for request in group:
        answered = RequestState.of(request)
        answered.token_ids += completions[request.request_id].token_ids
        drafter.finish(answered, policy_version=0)
    for request in group:
        state = RequestState.of(request)
        for token_id in completions[request.request_id].token_ids:
            (draft,) = drafter.propose([state], max_tokens=1)
            assert draft.token_ids == (token_id,)
            state.token_ids.append(token_id)
        drafter._trees.clear()
    firsts = {completion.token_ids[0] for completion in completions.values()}
    assert len(firsts) == 2, "there was something to tell apart"


@pytest.mark.parametrize("kind", [DrafterKind.ngram, DrafterKind.suffix, DrafterKind.auto])
def test_every_drafter_gives_the_same_completions(llama, without, kind):
    config = SpeculationConfig(drafter=kind, max_draft_tokens=8)
    engine = make_engine(llama, speculation=config, **LIMITS)
    assert engine.speculator is not None
    make_eager(engine.speculator)
    assert_same(run(engine, mixed()), without)
    second = run(engine, mixed())
    assert_same(second, without)
    if kind is not DrafterKind.ngram:
        stats = engine.speculator.stats
        assert stats.num_accepted > 100, "the second time, the first is history"


def test_costs_are_measured_before_the_engine_serves(llama):
    engine = make_engine(llama, speculation=SpeculationConfig(drafter=DrafterKind.auto))
    engine.check_integrity()
    assert engine.speculator is not None
    costs = engine.speculator._costs
    assert 0 < costs.seconds(StepSize(1, 0, 0)) < 1
    assert costs.seconds(StepSize(64, 1000, 1000)) > 0
    assert engine.stats.num_steps == 0


def test_an_engine_of_one_block_can_speculate_too(llama):
    config = SpeculationConfig(drafter=DrafterKind.suffix)
    requests = [make_request("a", prompt(4), max_tokens=6)]
    engine = make_engine(llama, num_blocks=2, speculation=config)
    assert_same(run(engine, requests), run(make_engine(llama), requests))


def test_without_a_drafter_there_is_nothing_to_measure(llama):
    assert make_engine(llama).speculator is None
    assert SpeculationConfig().drafter is DrafterKind.off


@pytest.mark.parametrize("max_tokens", [1, 2, 9, 40])
def test_nothing_is_computed_that_a_request_could_not_keep(llama, max_tokens):
    requests = [make_request("a", prompt(10), max_tokens=max_tokens)]
    expected = run(make_engine(llama), requests)
    engine = make_engine(llama)
    drafter = Scripted(futures_of(expected), error_rate=0.0, extra=50)
    engine.speculator = eager(drafter, max_draft_tokens=50)
    assert_same(run(engine, requests), expected)
    assert engine.stats.num_computed_tokens == 10 + max_tokens - 1
