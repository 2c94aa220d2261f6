"""Engines in 8 bits: exact among themselves, close to the model, and quantized by the sender."""

import pytest
import torch

from kernels.attention import Segment, packed_attention, packed_layout
from kernels.token_logprobs import token_logprobs
from rollout.config import StorageDtype
from rollout.engine.engine import Engine
from rollout.models.checkpoint import load_decoder
from rollout.models.int8 import int8_decoder, int8_weights
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
from tests.tiny_models import FAMILIES, save_tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def int8_engine(directory, **limits) -> Engine:
    return make_engine(directory, weight_dtype=StorageDtype.int8, **limits)


def int8_update(directory, version: int) -> WeightUpdate:
    decoder = load_decoder(directory, dtype=torch.float32)
    return make_update(version, int8_weights(decoder.hf_tensors()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logprobs_are_those_of_one_plain_forward_of_the_int8_model(family, dtype, tmp_path):
    directory = save_tiny(tmp_path, family)
    engine = int8_engine(directory, dtype=dtype)
    done = run(engine, [make_request("a", prompt(70), max_tokens=20)])["a"]
    decoder = int8_decoder(load_decoder(directory, dtype=dtype))
    token_ids = torch.tensor([*prompt(70), *done.token_ids])
    count = len(token_ids)
    segment = Segment(first_row=0, num_queries=count, first_position=0, key_index=range(count))
    layout = packed_layout([segment], num_rows=count)
    with torch.no_grad():
        hidden = decoder(
            token_ids,
            torch.arange(count),
            lambda _, q, k, v: packed_attention(q, k, v, layout),
        )
        logprobs = token_logprobs(decoder.logits(hidden[69:-1]), token_ids[70:])
    assert logprobs.tolist() == done.logprobs


def test_draws_depend_neither_on_the_batch_nor_on_chunks_nor_on_preemption(llama):
    together = draws(run(int8_engine(llama), mixed_requests()))
    chunked = int8_engine(llama, max_tokens_per_step=16, num_blocks=12)
    assert draws(run(chunked, mixed_requests())) == together
    alone = {}
    for request in mixed_requests():
        alone |= draws(run(int8_engine(llama), [request]))
    assert dict(sorted(alone.items())) == together


def test_it_is_close_to_the_plain_model_but_not_it(llama):
    (plain,) = run(make_engine(llama), [make_request("a", prompt(30), max_tokens=1)]).values()
    (int8,) = run(int8_engine(llama), [make_request("a", prompt(30), max_tokens=1)]).values()
    assert plain.token_ids == int8.token_ids
    assert 0 < abs(plain.logprobs[0] - int8.logprobs[0]) < 0.05


def test_what_the_sender_quantizes_is_what_an_engine_quantizes_at_its_start(llama, other_llama):
    engine = int8_engine(llama)
    assert engine.weights.digest() == int8_update(llama, 1).manifest.digest
    update = int8_update(other_llama, 1)
    put_in_force(engine, update)
    assert engine.weights.digest() == update.manifest.digest
    assert draws(run(engine, mixed_requests())) == draws(
        run(int8_engine(other_llama), mixed_requests())
    )


def test_every_matrix_but_the_embedding_has_8_bits_and_a_tied_head_its_own(llama):
    decoder = load_decoder(llama, dtype=torch.float32)
    plain, int8 = dict(decoder.hf_tensors()), dict(int8_weights(decoder.hf_tensors()))
    assert decoder.spec.tie_word_embeddings
    matrices = {name for name, tensor in int8.items() if tensor.dtype is torch.int8}
    assert matrices == {n for n, t in plain.items() if t.ndim == 2} - {
        "model.embed_tokens.weight"
    } | {"lm_head.weight"}
    assert {f"{name}_scale" for name in matrices} == set(int8) - set(plain) - {"lm_head.weight"}
    assert int8["model.embed_tokens.weight"].dtype is torch.float32


def test_plain_weights_make_it_a_plain_engine_from_their_commit_on(llama, other_llama):
    engine = int8_engine(llama)
    for version, directory in ((1, other_llama), (2, llama), (3, other_llama)):
        decoder = load_decoder(directory, dtype=torch.float32)
        put_in_force(engine, make_update(version, decoder.hf_tensors()))
        assert draws(run(engine, mixed_requests())) == draws(
            run(make_engine(directory), mixed_requests())
        )


def test_weights_in_8_bits_make_it_an_engine_in_8_bits_again(llama, other_llama):
    engine = int8_engine(llama)
    decoder = load_decoder(llama, dtype=torch.float32)
    put_in_force(engine, make_update(1, decoder.hf_tensors()))
    put_in_force(engine, int8_update(other_llama, 2))
    assert draws(run(engine, mixed_requests())) == draws(
        run(int8_engine(other_llama), mixed_requests())
    )


def test_staged_plain_weights_that_are_rolled_back_leave_it_in_8_bits(llama, other_llama):
    engine = int8_engine(llama)
    before = draws(run(engine, mixed_requests()))
    decoder = load_decoder(other_llama, dtype=torch.float32)
    engine.weights.stage(make_update(1, decoder.hf_tensors()))
    engine.weights.rollback()
    assert draws(run(engine, mixed_requests())) == before
    put_in_force(engine, make_update(1, decoder.hf_tensors()))
    assert draws(run(engine, mixed_requests())) == draws(
        run(make_engine(other_llama), mixed_requests())
    )


def test_a_plain_engine_refuses_weights_in_8_bits(llama):
    with pytest.raises(ValueError, match="the manifest must match"):
        make_engine(llama).weights.stage(int8_update(llama, 1))


def test_weights_that_are_not_finite_are_refused_by_the_sender(llama):
    decoder = load_decoder(llama, dtype=torch.float32)
    decoder.layers[0].o_proj.weight.data[1, 1] = float("nan")  # pyrefly: ignore
    with pytest.raises(ValueError, match="finite"):
        make_update(1, int8_weights(decoder.hf_tensors()))
