"""Engines whose KV cache has 8 bits: the same draws in any batch, close to the plain ones, in less memory."""

import pytest
import torch

from rollout.build.engines import build_engine
from rollout.config import EngineConfig, StorageDtype
from rollout.engine.runner import bytes_per_block
from rollout.models.checkpoint import load_decoder
from rollout.text.tokenizer import load_tokenizer
from rollout.weights.update import make_update
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

INT8 = StorageDtype.int8


@pytest.mark.parametrize(("dtype", "num_blocks"), [(torch.float32, 3), (torch.bfloat16, 6)])
def test_draws_depend_neither_on_batch_nor_chunks_nor_preemption_nor_prefix_hits(
    llama, dtype, num_blocks
):
    engine = make_engine(llama, dtype=dtype, kv_dtype=INT8)
    together = draws(run(engine, mixed_requests()))
    assert draws(run(engine, mixed_requests())) == together
    assert engine.stats.num_prefix_hit_tokens > 0
    # in 8 bits the memory of so many blocks holds 11 or 10: too few for all requests at once
    tight = make_engine(
        llama, dtype=dtype, kv_dtype=INT8, max_tokens_per_step=16, num_blocks=num_blocks
    )
    assert draws(run(tight, mixed_requests())) == together
    assert tight.stats.num_preemptions > 0
    alone = {}
    for request in mixed_requests():
        alone |= draws(run(make_engine(llama, dtype=dtype, kv_dtype=INT8), [request]))
    assert dict(sorted(alone.items())) == together


def test_it_is_close_to_the_plain_cache_but_not_it(llama):
    wanted = make_request("a", prompt(90), max_tokens=1)
    (plain,) = run(make_engine(llama), [wanted]).values()
    (int8,) = run(make_engine(llama, kv_dtype=INT8), [wanted]).values()
    assert plain.token_ids == int8.token_ids
    assert 0 < abs(plain.logprobs[0] - int8.logprobs[0]) < 0.05


def test_the_same_memory_holds_nearly_four_times_the_tokens_of_float32(llama):
    spec = load_decoder(llama, dtype=torch.float32).spec
    plain, int8 = (
        bytes_per_block(spec, block_size=16, dtype=torch.float32, is_int8=is_int8)
        for is_int8 in (False, True)
    )
    head_dim = spec.head_dim
    assert plain / int8 == pytest.approx(4 * head_dim / (head_dim + 4))
    # a prompt that a plain pool must reject fits
    config = {"block_size": 16, "max_requests": 1, "kv_cache_gb": 4.5 * plain / 1e9}
    long = make_request("a", prompt(100), max_tokens=2)
    answers = []
    for kv_dtype in (StorageDtype.plain, INT8):
        engine = build_engine(
            load_decoder(llama, dtype=torch.float32),
            load_tokenizer(llama),
            EngineConfig(kv_dtype=kv_dtype, **config),
        )
        answers.append(run(engine, [long])["a"].finish_reason.value)
    assert answers == ["rejected", "length"]


def test_a_nan_of_a_bad_update_does_not_linger(llama):
    engine = make_engine(llama, kv_dtype=INT8)
    before = draws(run(engine, mixed_requests()))
    for version, fill in ((1, float("nan")), (2, None)):
        decoder = load_decoder(llama, dtype=torch.float32)
        if fill is not None:
            for parameter in decoder.parameters():
                parameter.data.fill_(fill)
        put_in_force(engine, make_update(version, decoder.hf_tensors()))
        if fill is not None:
            with pytest.raises(RuntimeError, match="'broken' at position 60"):
                run(engine, [make_request("broken", prompt(60))])
            engine.forget("broken")
    assert draws(run(engine, mixed_requests())) == before


def test_both_in_8_bits_work_together(llama):
    engine = make_engine(llama, kv_dtype=INT8, weight_dtype=INT8)
    answers = draws(run(engine, mixed_requests()))
    assert answers != draws(run(make_engine(llama, kv_dtype=INT8), mixed_requests()))
    assert draws(run(engine, mixed_requests())) == answers
