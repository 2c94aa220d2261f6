"""I2 with a draft model, its cache's books, and its costs."""

import copy

import pytest

from rollout.build.fleets import open_fleet
from rollout.config import (
    DrafterKind,
    Dtype,
    EngineConfig,
    RayFleetConfig,
    SpeculationConfig,
    StorageDtype,
)
from rollout.core import RequestState, Status
from rollout.models.checkpoint import load_decoder
from rollout.speculation.cost_table import CostTable
from rollout.speculation.drafters.drafter import NO_DRAFT, NO_ROOM
from rollout.speculation.drafters.model import ModelDrafter
from rollout.speculation.make import check_draft_model
from rollout.speculation.speculator import Speculator
from tests.rollout.engine.engines import make_engine, make_group, make_request, prompt, run
from tests.rollout.engine.test_speculation import LIMITS, assert_same, make_eager, mixed
from tests.tiny_models import save_tiny

pytestmark = pytest.mark.usefixtures("one_thread")

FREE = {1: 1e-9, 2: 1e-9}
BLOCK_GB = 2 * 2 * 2 * 16 * 16 * 4 / 1e9  # keys and values, layers, KV heads, tokens, width, bytes


def drafter_of(directory, *, num_blocks=400, seconds=None):
    costs = CostTable(seconds or FREE)
    costs.refresh = lambda *_: None
    decoder = load_decoder(directory, dtype=make_engine(directory).decoder.embed_tokens.dtype)
    gb = (num_blocks + 0.5) * BLOCK_GB
    return ModelDrafter(decoder, kv_cache_gb=gb, block_size=16, max_context=512, costs=costs)


def engine_with(directory, drafter, *, max_draft_tokens=5, **limits):
    engine = make_engine(directory, **limits)
    costs = CostTable({1: 1.0, 2: 1.0})
    engine.speculator = make_eager(Speculator([drafter], costs, max_draft_tokens=max_draft_tokens))
    return engine


def assert_idle(drafter):
    drafter.check_integrity()
    assert drafter.num_free_blocks == drafter.num_blocks


@pytest.fixture(scope="module")
def without(llama):
    return run(make_engine(llama, **LIMITS), mixed())


def test_the_config_builds_one_and_outputs_stay_the_same(llama, other_llama, without):
    config = SpeculationConfig(
        drafter=DrafterKind.model, model_path=str(other_llama), max_draft_tokens=3
    )
    engine = make_engine(llama, speculation=config, **LIMITS)
    make_eager(engine.speculator)
    assert_same(run(engine, mixed()), without)
    assert engine.speculator.stats.num_proposed > 50
    assert_idle(engine.speculator.drafters[0])


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"num_blocks": 14},
        {"prefix_cache": False},
        {"max_tokens_per_step": 17},
        {"block_size": 64},
        {"max_requests": 3},
    ],
)
@pytest.mark.parametrize("is_same", [True, False])
def test_drafts_of_a_model_change_nothing(llama, other_llama, without, limits, is_same):
    drafter = drafter_of(llama if is_same else other_llama)
    engine = engine_with(llama, drafter, **(LIMITS | limits))
    assert_same(run(engine, mixed()), without)
    assert_same(run(engine, mixed()), without)  # prompts in both prefix caches
    assert engine.speculator.stats.num_proposed > 50
    assert_idle(drafter)
    if "num_blocks" in limits:
        assert engine.stats.num_preemptions > 0


@pytest.mark.parametrize(
    "limits", [{"weight_dtype": StorageDtype.int8}, {"kv_dtype": StorageDtype.int8}]
)
def test_drafts_of_a_model_change_nothing_in_8_bits(llama, limits):
    limits = LIMITS | limits
    engine = engine_with(llama, drafter_of(llama), **limits)
    assert_same(run(engine, mixed()), run(make_engine(llama, **limits), mixed()))
    stats = engine.speculator.stats
    assert 0.5 * stats.num_proposed < stats.num_accepted


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0},
        {"temperature": 2.0},
        {"temperature": 0.7, "top_k": 20},
        {"top_p": 0.8, "min_p": 0.02},
    ],
)
def test_a_model_that_drafts_for_itself_is_always_right(llama, sampling):
    requests = make_group(0, prompt(40), size=4, max_tokens=30, **sampling)
    requests += [make_request("long", prompt(300, start=3), group_id=1, max_tokens=25, **sampling)]
    drafter = drafter_of(llama)
    engine = engine_with(llama, drafter)
    assert_same(run(engine, requests), run(make_engine(llama), requests))
    stats = engine.speculator.stats
    assert stats.num_proposed > 80
    assert stats.num_accepted == stats.num_proposed
    assert stats.num_without_room == 0
    assert_idle(drafter)


def test_the_books_close_after_every_step_and_an_abort(llama, other_llama, without):
    drafter = drafter_of(other_llama)
    engine = engine_with(llama, drafter, num_blocks=17, **LIMITS)
    for request in mixed():
        engine.add_request(request)
    for step in range(500):
        if not engine.has_unfinished:
            break
        if step == 6:
            engine.abort("greedy")
        engine.step()
        engine.check_integrity()
        drafter.check_integrity()
    assert not engine.has_unfinished
    assert_idle(drafter)


@pytest.mark.parametrize("num_blocks", [1, 4, 9])
def test_requests_without_room_get_no_draft_and_are_counted(llama, without, num_blocks):
    drafter = drafter_of(llama, num_blocks=num_blocks)
    engine = engine_with(llama, drafter, **LIMITS)
    assert_same(run(engine, mixed()), without)
    stats = engine.speculator.stats
    assert stats.num_without_room > 0
    assert stats.metrics()["speculation/without_room"] == stats.num_without_room
    assert_idle(drafter)


def running(name, length, start=0):
    state = RequestState.of(make_request(name, prompt(length, start=start)))
    state.status = Status.RUNNING
    return state


def test_who_is_not_asked_for_gives_up_its_blocks_and_who_is_preempted_too(llama):
    drafter = drafter_of(llama, num_blocks=3)
    first, second, third = running("a", 30), running("b", 30, 1), running("c", 5, 2)
    assert drafter.propose([first], max_tokens=2)[0].token_ids
    drafts = drafter.propose([first, second], max_tokens=2)
    assert drafts[0].token_ids
    assert drafts[1] is NO_ROOM
    assert drafter.propose([second], max_tokens=2)[0].token_ids, "the first was not asked for"
    second.status = Status.WAITING
    drafter.propose([third], max_tokens=1)
    assert drafter.num_free_blocks == 2


def test_long_prompts_are_taken_in_over_several_calls(llama):
    drafter = drafter_of(llama)
    long, short = running("long", 400), running("short", 5, 1)
    drafts = drafter.propose([short, long], max_tokens=2)
    assert drafts[0] is not NO_DRAFT or drafts[1] is not NO_DRAFT
    drafts = drafter.propose([short, long], max_tokens=2)
    assert all(draft.token_ids for draft in drafts)


def test_siblings_find_the_prompt_that_one_of_them_had_computed(llama):
    drafter = drafter_of(llama)
    states = [running(f"{i}", 70) for i in range(4)]
    assert sum(bool(d.token_ids) for d in drafter.propose(states, max_tokens=1)) == 1
    assert all(d.token_ids for d in drafter.propose(states, max_tokens=1))
    assert drafter.num_blocks - drafter.num_free_blocks == 4 + 4, "4 shared, 1 of each"


def test_another_vocabulary_is_refused_with_both_sizes(llama, tmp_path):
    save_tiny(tmp_path, "llama", vocab_size=300)
    config = SpeculationConfig(drafter=DrafterKind.model, model_path=str(tmp_path))
    with pytest.raises(ValueError, match=r"300 tokens, the model it drafts for has \d+"):
        make_engine(llama, speculation=config)


def test_a_draft_model_that_is_not_there_is_named_by_its_own_key_before_a_fleet_starts(
    llama, tmp_path
):
    config = SpeculationConfig(drafter=DrafterKind.auto, model_path=str(tmp_path / "none"))
    engine = EngineConfig(speculation=config)
    with pytest.raises(ValueError, match=r"^engine\.speculation\.model_path must be an existing"):
        check_draft_model(engine, make_engine(llama).decoder)
    (tmp_path / "file").write_text("")
    config.model_path = str(tmp_path / "file")
    fleet = open_fleet(
        RayFleetConfig(),
        engine,
        make_engine(llama).decoder,
        None,
        weights=llama,
        dtype=Dtype.float32,
        policy_version=0,
    )
    with pytest.raises(ValueError, match=r"^engine\.speculation\.model_path must be a directory"):
        fleet.__enter__()


def test_a_model_needs_a_path_and_a_block():
    with pytest.raises(ValueError, match=r"engine\.speculation\.model_path must be"):
        SpeculationConfig(drafter=DrafterKind.model)
    with pytest.raises(ValueError, match=r"engine\.speculation\.kv_cache_gb must be > 0"):
        SpeculationConfig(kv_cache_gb=0)


def test_auto_has_the_model_if_one_is_named(llama):
    config = SpeculationConfig(drafter=DrafterKind.auto, model_path=str(llama))
    names = [type(d).__name__ for d in make_engine(llama, speculation=config).speculator.drafters]
    assert names == ["SuffixDrafter", "ModelDrafter"]


def test_a_draft_model_as_slow_as_what_it_saves_is_left_alone(llama):
    """Of 64 steps, a few to learn: a right token costs as much from the draft model as from the engine's."""
    requests = [make_request("a", prompt(10), max_tokens=200)]

    def proposed(seconds):
        drafter = drafter_of(llama, seconds={1: seconds, 2: seconds})
        engine = engine_with(llama, drafter)
        run(engine, requests)
        return engine.speculator.stats.num_proposed

    assert proposed(0.05) > 100
    assert proposed(1.0) < 30


def test_seconds_are_those_of_every_forward_and_of_what_was_accepted(llama):
    drafter = drafter_of(llama, seconds={1: 1.0, 101: 101.0})
    state = running("a", 20)
    assert drafter.seconds([state], max_tokens=3) == 3, "the prompt is paid once"
    drafter.propose([state], max_tokens=4)
    state.token_ids += [1, 2, 3]
    assert drafter.seconds([state], max_tokens=3) == 3 + 2
    assert drafter.seconds([state, running("b", 9)], max_tokens=2) == 4 + 2


def test_a_copy_shares_the_weights_and_starts_empty(llama):
    drafter = drafter_of(llama)
    drafter.propose([running("a", 20)], max_tokens=1)
    other = copy.deepcopy(drafter)
    assert other._decoder is drafter._decoder
    assert_idle(other)


def test_what_was_computed_behind_a_wrong_token_is_computed_anew(llama):
    """Another drafter's tokens may have been accepted, so more than the last one can differ."""
    drafter = drafter_of(llama)
    state = running("a", 20)
    (wrong,) = drafter.propose([state], max_tokens=6)
    state.token_ids += [(token_id + 1) % 250 for token_id in wrong.token_ids[:4]]
    assert drafter.propose([state], max_tokens=6) == drafter_of(llama).propose(
        [state], max_tokens=6
    )
