"""What becomes of requests in flight when weights change under them: `drain`, `keep`, `recompute`; I1, I6 and I8."""

from collections.abc import Iterable

import pytest
import torch

from rollout.config import OnUpdate, StorageDtype
from rollout.core import Completion, Request
from rollout.engine.engine import Engine
from rollout.models.checkpoint import load_decoder
from rollout.models.decoder import Decoder
from rollout.models.int8 import int8_weights
from rollout.weights.update import WeightUpdate, make_update
from tests.rollout.engine.engines import (
    draws,
    make_engine,
    make_group,
    make_request,
    mixed_requests,
    prompt,
    run,
)
from tests.rollout.engine.test_exactness import Sampled, pack_whole, trainer_logprobs
from tests.rollout.engine.test_speculation import Scripted, eager

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = list(OnUpdate)
AT_ONCE = [OnUpdate.keep, OnUpdate.recompute]


def update_from(directory, version: int) -> WeightUpdate:
    return make_update(version, load_decoder(directory, dtype=torch.float32).hf_tensors())


def make_requests() -> list[Request]:
    """More than run at once or fit into the cache: siblings, long prompts, ends at many different steps."""
    return [
        *make_group(0, prompt(40), size=4, max_tokens=14),
        make_request("long", prompt(100, start=3), group_id=1, temperature=0.7, max_tokens=20),
        *make_group(2, prompt(70, start=5), size=3, max_tokens=9),
        make_request("cold", prompt(7, start=1), group_id=3, temperature=0.4, max_tokens=25),
        *make_group(4, prompt(30, start=7), size=4, max_tokens=18),
    ]


def run_with_updates(
    engine: Engine, requests: Iterable[Request], updates: dict[int, WeightUpdate]
) -> dict[str, Completion]:
    """Stage, verify and commit when ready before the steps of those numbers; every book is recounted at every step."""
    for request in requests:
        engine.add_request(request)
    answers: dict[str, Completion] = {}
    step = 0
    while engine.has_unfinished:
        if step in updates:
            engine.weights.stage(updates[step])
            engine.weights.verify()
            engine.weights.commit_when_ready()
        answers |= {c.request_id: c for c in engine.step()}
        engine.check_integrity()
        step += 1
        assert step < 1000, "somebody waits for ever"
    assert step > max(updates)
    assert engine.policy_version == list(updates.values())[-1].version
    return answers


def assert_tokens_are_those_of_their_versions(
    decoders: dict[int, Decoder], requests: list[Request], answers: dict[str, Completion]
) -> None:
    """The trainer with the weights of a version computes the log-probability of that version's tokens, bit for bit."""
    samples = [Sampled(request, answers[request.request_id]) for request in requests]
    seen = 0
    for version, decoder in decoders.items():
        for sample, logprobs in zip(
            samples, trainer_logprobs(decoder, samples, pack_whole), strict=True
        ):
            completion = sample.completion
            for trainer, engine, token_version in zip(
                logprobs, completion.logprobs, completion.policy_versions, strict=True
            ):
                if token_version == version:
                    assert torch.tensor(trainer) == torch.tensor(engine), sample.request.request_id
                    seen += 1
    assert seen == sum(len(c.token_ids) for c in answers.values())


def num_mixed(answers: dict[str, Completion]) -> int:
    return sum(len(set(c.policy_versions)) > 1 for c in answers.values())


@pytest.fixture(scope="module")
def decoders(llama, other_llama):
    """By version: it goes to and fro."""
    both = [load_decoder(directory, dtype=torch.float32) for directory in (llama, other_llama)]
    return {0: both[0], 1: both[1], 2: both[0]}


@pytest.mark.parametrize("speculates", [False, True])
@pytest.mark.parametrize("on_update", [OnUpdate.drain, OnUpdate.recompute])
def test_every_token_is_to_the_bit_that_of_the_weights_whose_version_it_bears(
    llama, other_llama, decoders, on_update, speculates
):
    # so few blocks that requests are preempted, too
    engine = make_engine(
        llama, num_blocks=11, max_requests=7, max_tokens_per_step=24, on_update=on_update
    )
    if speculates:
        futures = {n: c.token_ids for n, c in run(make_engine(llama), make_requests()).items()}
        engine.speculator = eager(Scripted(futures, error_rate=0.1))
    updates = {6: update_from(other_llama, 1), 30: update_from(llama, 2)}
    answers = run_with_updates(engine, make_requests(), updates)
    assert engine.stats.num_preemptions > 0
    assert {v for c in answers.values() for v in c.policy_versions} == {0, 1, 2}
    assert (num_mixed(answers) > 0) == (on_update is OnUpdate.recompute)
    assert all(c.policy_versions == sorted(c.policy_versions) for c in answers.values())
    assert_tokens_are_those_of_their_versions(decoders, make_requests(), answers)
    if speculates:
        assert engine.speculator.take_stats().num_accepted > 10


@pytest.mark.parametrize("on_update", ALL)
def test_a_commit_between_any_two_steps_counts_every_token_to_the_right_version(
    llama, other_llama, on_update
):
    for step in range(1, 12):
        engine = make_engine(llama, num_blocks=18, max_requests=7, on_update=on_update)
        answers = run_with_updates(engine, make_requests(), {step: update_from(other_llama, 1)})
        assert {n: len(c.token_ids) for n, c in answers.items()} == {
            r.request_id: r.params.max_tokens for r in make_requests()
        }
        assert all(c.policy_versions == sorted(c.policy_versions) for c in answers.values())
        assert (num_mixed(answers) > 0) == (on_update is not OnUpdate.drain)


def test_draining_begins_nobody_and_those_that_wait_find_the_new_weights(llama, other_llama):
    engine = make_engine(llama, max_requests=4)
    requests = [make_request(str(i), prompt(5), group_id=i, max_tokens=3 + i) for i in range(8)]
    answers = run_with_updates(engine, requests, {1: update_from(other_llama, 1)})
    versions = [set(answers[str(i)].policy_versions) for i in range(8)]
    assert versions == [{0}] * 4 + [{1}] * 4
    born_new = run(make_engine(other_llama, max_requests=4), requests[4:])
    assert draws({n: c for n, c in answers.items() if n in born_new}) == draws(born_new)


def test_one_that_is_preempted_while_the_engine_drains_ends_with_the_old_weights(
    llama, other_llama
):
    engine = make_engine(llama, num_blocks=9)
    requests = make_group(0, prompt(30), size=4, max_tokens=40)
    answers = run_with_updates(engine, requests, {3: update_from(other_llama, 1)})
    assert engine.stats.num_preemptions > 0
    assert {v for c in answers.values() for v in c.policy_versions} == {0}
    assert draws(answers) == draws(run(make_engine(llama), requests))


def test_aborting_what_is_in_the_way_lets_the_commit_happen(llama, other_llama):
    engine = make_engine(llama)
    engine.add_request(make_request("a", prompt(5), max_tokens=400))
    engine.step()
    engine.weights.stage(update_from(other_llama, 1))
    engine.weights.verify()
    engine.weights.commit_when_ready()
    engine.step()
    assert (engine.policy_version, engine.weights.is_commit_pending) == (0, True)
    engine.abort("a")
    engine.step()
    assert (engine.policy_version, engine.weights.is_commit_pending) == (1, False)


@pytest.mark.parametrize("on_update", ALL)
def test_a_commit_is_at_once_where_nothing_has_begun(llama, other_llama, on_update):
    engine = make_engine(llama, on_update=on_update)
    for request in make_requests():
        engine.add_request(request)
    engine.weights.stage(update_from(other_llama, 1))
    engine.weights.verify()
    engine.weights.commit_when_ready()
    assert (engine.policy_version, engine.weights.is_commit_pending) == (1, False)
    born_new = run(make_engine(other_llama), make_requests())
    assert draws(run(engine)) == draws(born_new)


def test_a_commit_that_waits_can_be_rolled_back_and_requests_are_begun_again(llama, other_llama):
    engine = make_engine(llama, max_requests=5)
    for request in make_requests():
        engine.add_request(request)
    engine.step()
    engine.weights.stage(update_from(other_llama, 1))
    engine.weights.verify()
    engine.weights.commit_when_ready()
    engine.step()
    engine.weights.rollback()
    answers = run(engine)
    assert (engine.policy_version, engine.weights.is_commit_pending) == (0, False)
    assert draws(answers) == draws(run(make_engine(llama), make_requests()))


@pytest.mark.parametrize("on_update", ALL)
def test_what_is_not_verified_is_never_committed_and_nothing_waits_for_it(
    llama, other_llama, on_update
):
    engine = make_engine(llama, on_update=on_update)
    engine.weights.stage(update_from(other_llama, 1))
    with pytest.raises(RuntimeError, match="commit is not allowed while the weight receiver is ST"):
        engine.weights.commit_when_ready()
    assert not engine.weights.is_commit_pending


# --- keep


def test_kept_keys_are_those_of_the_old_weights_and_recomputed_ones_are_not(llama, other_llama):
    answers = {}
    for on_update in AT_ONCE:
        engine = make_engine(llama, on_update=on_update)
        request = make_request("a", prompt(40), max_tokens=12)
        updates = {4: update_from(other_llama, 1)}
        answers[on_update] = run_with_updates(engine, [request], updates)["a"]
        computed = engine.stats.num_computed_tokens
        assert computed == 40 + 11 + (40 + 3 if on_update is OnUpdate.recompute else 0)
    keep, recompute = answers[OnUpdate.keep], answers[OnUpdate.recompute]
    assert keep.policy_versions == recompute.policy_versions == [0] * 4 + [1] * 8
    assert keep.logprobs[:4] == recompute.logprobs[:4]
    assert keep.logprobs[4] != recompute.logprobs[4]


@pytest.mark.parametrize("on_update", AT_ONCE)
def test_an_update_to_the_same_weights_changes_nothing_but_the_versions(llama, on_update):
    engine = make_engine(llama, num_blocks=18, max_requests=7, on_update=on_update)
    updates = {step: update_from(llama, step) for step in (3, 6, 15)}
    answers = run_with_updates(engine, make_requests(), updates)
    assert {v for c in answers.values() for v in c.policy_versions} == {0, *updates}
    assert draws(answers) == draws(run(make_engine(llama), make_requests()))


@pytest.mark.parametrize("on_update", AT_ONCE)
def test_one_whose_prompt_is_half_computed_begins_anew_and_so_do_its_siblings(
    llama, other_llama, on_update
):
    engine = make_engine(llama, on_update=on_update, max_tokens_per_step=24)
    requests = make_group(0, prompt(70), size=3, max_tokens=6)
    answers = run_with_updates(engine, requests, {2: update_from(other_llama, 1)})
    assert draws(answers) == draws(run(make_engine(other_llama), requests))


@pytest.mark.parametrize("on_update", ALL)
@pytest.mark.parametrize("length", [5, 40, 100])
def test_a_prefix_hit_never_crosses_an_update_that_came_while_its_request_ran(
    llama, other_llama, on_update, length
):
    # prompts shorter and longer than a block; the request ends, is remembered or not, and its prompt and log come again
    engine = make_engine(llama, on_update=on_update)
    first = make_request("first", prompt(length), max_tokens=40)
    answers = run_with_updates(engine, [first], {3: update_from(other_llama, 1)})
    log = (*prompt(length), *answers["first"].token_ids)
    again = [make_request("prompt", prompt(length)), make_request("log", log, group_id=1)]
    assert draws(run(engine, again)) == draws(run(make_engine(other_llama), again))


def test_a_sibling_that_comes_after_an_update_reads_nothing_of_the_old_weights(llama, other_llama):
    engine = make_engine(llama, on_update=OnUpdate.keep, max_tokens_per_step=16, max_requests=2)
    requests = make_group(0, prompt(40), size=4, max_tokens=6)
    answers = run_with_updates(engine, requests, {4: update_from(other_llama, 1)})
    born_new = draws(run(make_engine(other_llama), requests))
    late = [n for n, c in answers.items() if set(c.policy_versions) == {1}]
    assert late == ["0/2", "0/3"]
    assert all(draws(answers)[name] == born_new[name] for name in late)


# --- what else must survive


@pytest.mark.parametrize("on_update", AT_ONCE)
def test_weights_and_keys_in_8_bits_change_under_requests_too(llama, other_llama, on_update):
    limits = {"on_update": on_update, "weight_dtype": StorageDtype.int8}
    for dtype in (StorageDtype.plain, StorageDtype.int8):
        engine = make_engine(llama, **limits, kv_dtype=dtype)
        new = load_decoder(other_llama, dtype=torch.float32).hf_tensors()
        updates = {
            2: make_update(1, int8_weights(new)),
            5: update_from(llama, 2),  # plain, for good
        }
        answers = run_with_updates(engine, mixed_requests(), updates)
        assert {v for c in answers.values() for v in c.policy_versions} == {0, 1, 2}
        plain = run(make_engine(llama, kv_dtype=dtype), mixed_requests())
        assert draws(run(engine, mixed_requests())) == draws(plain)


def test_evaluation_is_begun_before_training_that_waits(llama):
    engine = make_engine(llama, max_requests=1)
    for name, priority in (("t0", 0), ("t1", 0), ("e0", 1), ("t2", 0), ("e1", 1)):
        request = make_request(name, prompt(5), group_id=ord(name[1]), max_tokens=2)
        engine.add_request(
            Request(
                request_id=name,
                token_ids=request.token_ids,
                params=request.params,
                key=request.key,
                priority=priority,
            )
        )
    assert list(run(engine)) == ["e0", "e1", "t0", "t1", "t2"]


def test_what_a_sibling_has_sampled_is_found_again_within_its_version(llama):
    engine = make_engine(llama)
    answers = run(engine, make_group(0, prompt(40), size=2, max_tokens=40))
    hits = engine.stats.num_prefix_hit_tokens
    run(engine, [make_request("log", (*prompt(40), *answers["0/1"].token_ids), group_id=1)])
    assert engine.stats.num_prefix_hit_tokens == hits + 64
