"""Weights flip atomically under an engine that serves: I6 and I8."""

import threading

import pytest
import torch

from kernels.cpu.library import native_library
from kernels.cpu.native_functions import native_functions
from rollout.config import StorageDtype
from rollout.models.checkpoint import load_decoder
from rollout.models.int8 import int8_weights
from rollout.weights.manifest import describe_layout
from rollout.weights.staging import HeldWeights
from rollout.weights.update import WeightUpdate, make_update
from tests.rollout.engine.engines import (
    draws,
    make_engine,
    make_request,
    mixed_requests,
    prompt,
    put_in_force,
    run,
)

pytestmark = pytest.mark.usefixtures("one_thread")

EMBEDDING = "model.embed_tokens.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.norm.weight"


def update_from(directory, version: int, *, fill: float | None = None) -> WeightUpdate:
    """The weights of a directory as a new version; with `fill`, every element is that."""
    decoder = load_decoder(directory, dtype=torch.float32)
    if fill is not None:
        for parameter in decoder.parameters():
            parameter.data.fill_(fill)
    return make_update(version, decoder.hf_tensors())


@pytest.fixture(scope="module")
def old(llama, one_thread):
    return draws(run(make_engine(llama), mixed_requests()))


@pytest.fixture(scope="module")
def new(other_llama, one_thread):
    return draws(run(make_engine(other_llama), mixed_requests()))


def test_outputs_after_a_commit_are_those_of_an_engine_born_with_the_new_weights(
    llama, other_llama, old, new
):
    engine = make_engine(llama)
    for version, directory, expected in (
        (1, other_llama, new),
        (2, llama, old),
        (7, other_llama, new),
    ):
        put_in_force(engine, update_from(directory, version))
        assert engine.policy_version == version
        assert draws(run(engine, mixed_requests())) == expected
    assert all(old[name] != new[name] for name in old)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_so_are_those_after_several_commits_with_nothing_run_in_between(
    llama, other_llama, new, count
):
    engine = make_engine(llama)
    run(engine, mixed_requests())  # lays out the old weights
    for version in range(1, count + 1):
        put_in_force(engine, update_from(other_llama, version))
    assert draws(run(engine, mixed_requests())) == new


def test_every_token_knows_the_version_that_drew_it(llama, other_llama):
    engine = make_engine(llama, policy_version=4)
    (before,) = run(engine, [make_request("a", prompt(5))]).values()
    put_in_force(engine, update_from(other_llama, 9))
    (after,) = run(engine, [make_request("a", prompt(5))]).values()
    assert (before.policy_versions, after.policy_versions) == ([4] * 8, [9] * 8)


def test_a_prefix_hit_never_crosses_versions(llama, other_llama):
    engine = make_engine(llama)
    run(engine, mixed_requests())
    hits = engine.stats.num_prefix_hit_tokens
    run(engine, mixed_requests())
    assert engine.stats.num_prefix_hit_tokens == hits + 32 + 96, "the cache works"
    hits = engine.stats.num_prefix_hit_tokens
    for version in (1, 2):  # version 2 has the weights of 0, and still is another version
        put_in_force(engine, update_from((llama, other_llama)[version % 2], version))
        run(engine, mixed_requests())
        assert engine.stats.num_prefix_hit_tokens == hits
    run(engine, mixed_requests())
    assert engine.stats.num_prefix_hit_tokens == hits + 32 + 96, "and works again"


def test_an_engine_born_at_a_version_caches_prefixes_under_it(llama, other_llama):
    engine = make_engine(llama, policy_version=5)
    run(engine, mixed_requests())
    put_in_force(engine, update_from(other_llama, 6))
    hits = engine.stats.num_prefix_hit_tokens
    run(engine, mixed_requests())
    assert engine.stats.num_prefix_hit_tokens == hits


def test_digests_agree_on_both_sides(llama, other_llama):
    engine = make_engine(llama)
    before, update = update_from(llama, 1).manifest.digest, update_from(other_llama, 1)
    assert engine.weights.digest() == before
    engine.weights.stage(update)
    engine.weights.verify()
    assert engine.weights.digest() == before
    engine.weights.commit()
    assert engine.weights.digest() == update.manifest.digest != before


def test_staging_while_requests_run_changes_no_bit_and_the_commit_waits_for_them(
    llama, other_llama, old, new
):
    engine = make_engine(llama)
    for request in mixed_requests():
        engine.add_request(request)
    engine.step()
    engine.weights.stage(update_from(other_llama, 1))
    engine.step()
    engine.weights.verify()
    with pytest.raises(
        RuntimeError, match=r"commit needs a drained engine .* 4 requests have begun"
    ):
        engine.weights.commit()
    assert engine.policy_version == 0
    answers = run(engine)
    assert draws(answers) == old
    assert {v for c in answers.values() for v in c.policy_versions} == {0}
    engine.weights.commit()
    assert draws(run(engine, mixed_requests())) == new


@pytest.mark.parametrize(
    ("name", "index"),
    [(EMBEDDING, 0), (EMBEDDING, -1), (QUERY, 77), (DOWN, -1), (NORM, 5)],
)
@pytest.mark.parametrize("value", [1.5, float("nan")])
def test_one_wrong_element_leaves_the_old_version_serving(
    llama, other_llama, old, name, index, value
):
    engine = make_engine(llama)
    digest = engine.weights.digest()
    torn = update_from(other_llama, 1)
    torn.tensors[name].detach().view(-1)[index] = value
    engine.weights.stage(torn)
    with pytest.raises(RuntimeError, match=rf"differ .* 1 of \d+ tensors: {name}; version 0 stays"):
        engine.weights.verify()
    with pytest.raises(RuntimeError, match="commit is not allowed"):
        engine.weights.commit()
    assert (engine.policy_version, engine.weights.digest()) == (0, digest)
    assert draws(run(engine, mixed_requests())) == old


def test_a_torn_update_can_be_sent_again(llama, other_llama, new):
    engine = make_engine(llama)
    torn = update_from(other_llama, 1)
    torn.tensors[QUERY].detach()[0, 0] += 1
    engine.weights.stage(torn)
    with pytest.raises(RuntimeError, match="differ from their manifest"):
        engine.weights.verify()
    put_in_force(engine, update_from(other_llama, 1))
    assert draws(run(engine, mixed_requests())) == new


def test_a_rollback_leaves_the_old_version_serving_and_the_next_update_welcome(
    llama, other_llama, old, new
):
    engine = make_engine(llama)
    for verified in (False, True):
        engine.weights.stage(update_from(other_llama, 1))
        if verified:
            engine.weights.verify()
        engine.weights.rollback()
        assert engine.policy_version == 0
        assert draws(run(engine, mixed_requests())) == old
    put_in_force(engine, update_from(other_llama, 1))
    assert draws(run(engine, mixed_requests())) == new


def test_the_sender_may_go_on_once_its_update_is_staged(llama, other_llama, new):
    engine = make_engine(llama)
    update = update_from(other_llama, 1)
    engine.weights.stage(update)
    for tensor in update.tensors.values():
        tensor.detach().zero_()
    engine.weights.verify()
    engine.weights.commit()
    assert draws(run(engine, mixed_requests())) == new


def test_nothing_of_a_version_full_of_nan_lingers_in_the_cache(llama, other_llama, new):
    engine = make_engine(llama, num_blocks=24)
    put_in_force(engine, update_from(llama, 1, fill=float("nan")))
    with pytest.raises(RuntimeError, match="are not finite"):
        run(engine, mixed_requests())
    for request in mixed_requests():
        engine.forget(request.request_id)
    engine.check_integrity()
    put_in_force(engine, update_from(other_llama, 2))
    assert draws(run(engine, mixed_requests())) == new


def test_weights_arrive_in_pieces_from_another_thread_while_requests_run(
    llama, other_llama, old, new
):
    engine, update = make_engine(llama), update_from(other_llama, 1)
    layout = describe_layout(1, update.tensors.items())
    has_run = threading.Event()

    def stage() -> None:
        with engine.weights.staging(layout) as shadows:
            for name, tensor in update.tensors.items():
                shadows[name].copy_(tensor.detach())
            assert has_run.wait(60), "the engine steps while weights are staged"
        engine.weights.verify(update.manifest)

    thread = threading.Thread(target=stage)
    thread.start()
    assert draws(run(engine, mixed_requests())) == old
    has_run.set()
    thread.join()
    assert engine.weights.held() == HeldWeights(version=0, digest=engine.weights.digest())
    engine.weights.commit()
    assert engine.weights.held() == HeldWeights(version=1, digest=update.manifest.digest)
    assert engine.weights.digest() == update.manifest.digest
    assert draws(run(engine, mixed_requests())) == new


@pytest.fixture
def num_packed(monkeypatch):
    """How often a matrix was laid out since the last call, by which thread; C is asked, whoever called it."""
    functions, threads = native_functions(torch.float32), []

    def counted(pack):
        def call(*args) -> None:
            threads.append(threading.get_ident())
            pack(*args)

        return call

    for name in ("pack", "int8_pack"):
        monkeypatch.setattr(functions, name, counted(getattr(functions, name)))

    def take() -> list[int]:
        taken = list(threads)
        threads.clear()
        return taken

    return take


@pytest.mark.skipif(native_library(torch.float32) is None, reason="nothing is laid out without C")
@pytest.mark.parametrize("weight_dtype", StorageDtype)
def test_what_is_laid_out_is_laid_out_before_the_commit_and_never_in_a_step(
    llama, other_llama, num_packed, weight_dtype
):
    def as_sent(directory, version):
        weights = load_decoder(directory, dtype=torch.float32).hf_tensors()
        is_int8 = weight_dtype is StorageDtype.int8
        return make_update(version, int8_weights(weights) if is_int8 else weights)

    engine = make_engine(llama, weight_dtype=weight_dtype)
    outputs = [
        draws(run(make_engine(directory, weight_dtype=weight_dtype), mixed_requests()))
        for directory in (llama, other_llama)
    ]
    run(engine, mixed_requests())
    num_packed()
    for version in range(1, 5):
        for request in mixed_requests():
            engine.add_request(request)
        engine.step()
        engine.weights.stage(as_sent((llama, other_llama)[version % 2], version))
        verifying = threading.Thread(target=engine.weights.verify)
        verifying.start()
        verifying.join(60)
        laid_out = num_packed()
        assert set(laid_out) <= {verifying.ident}
        assert laid_out or weight_dtype is StorageDtype.int8, "int8 has panels on some CPUs alone"
        engine.weights.commit_when_ready()
        assert draws(run(engine)) == outputs[(version - 1) % 2], "the old weights finish their own"
        assert draws(run(engine, mixed_requests())) == outputs[version % 2]
        assert not num_packed()


@pytest.mark.skipif(native_library(torch.float32) is None, reason="nothing is laid out without C")
def test_a_torn_or_withdrawn_update_is_laid_out_anew_when_it_comes_again(
    llama, other_llama, old, new, num_packed
):
    engine = make_engine(llama)
    put_in_force(engine, update_from(llama, 1))  # both sets of panels exist from here on
    torn = update_from(llama, 2, fill=3.0)
    torn.tensors[QUERY].detach()[0, 0] += 1
    num_packed()
    engine.weights.stage(torn)
    with pytest.raises(RuntimeError, match="differ from their manifest"):
        engine.weights.verify()
    assert not num_packed(), "what is wrong is not worth it"
    engine.weights.stage(update_from(llama, 2, fill=3.0))
    engine.weights.verify()
    engine.weights.rollback()
    assert draws(run(engine, mixed_requests())) == old
    put_in_force(engine, update_from(other_llama, 2))
    assert draws(run(engine, mixed_requests())) == new


@pytest.mark.skipif(native_library(torch.float32) is None, reason="nothing is laid out without C")
def test_panels_of_updates_take_turns_in_the_memory_of_two(llama, other_llama):
    engine = make_engine(llama)
    places = []
    for version in range(1, 6):
        put_in_force(engine, update_from((llama, other_llama)[version % 2], version))
        run(engine, mixed_requests())
        laid_out = engine.weights.live
        assert laid_out.packed_head is not None
        places.append(laid_out.packed_head.data_ptr())
    assert places == [places[0], places[1]] * 2 + [places[0]]
    assert places[0] != places[1]
