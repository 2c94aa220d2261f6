"""Ops on tensors of a GPU: they reach their launchers, with gradients. In the interpreter, CPU tensors stand in for these."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from kernels.attention import (
    PagedKV,
    packed_attention,
    packed_layout,
    paged_attention,
    paged_layout,
)
from kernels.backends import interpreting_triton, runs_in_triton
from kernels.linear import head_logits, linear
from kernels.linear_logprobs import linear_logprobs
from kernels.philox import philox_uniform
from kernels.rms_norm import rms_norm
from kernels.rope import rope, rope_table
from kernels.sample import sample
from kernels.swiglu import swiglu
from kernels.token_logprobs import vocab_sums
from tests.kernels.accuracy import randn
from tests.kernels.gpu.attention.test_attention_triton import (
    BLOCK_SIZE,
    LENGTHS,
    TABLES,
    last_queries,
)
from tests.kernels.sequences import make_qkv, shared_prompt, whole_sequences


@pytest.fixture
def on_gpu(device) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Moves tensors to the device, or lets them stay and be taken for ones of a GPU."""
    if device == "cuda":
        yield lambda x: x.cuda()
        return
    with interpreting_triton():
        yield lambda x: x


def launched(run: Callable[[], object]) -> int:
    """Kernels that `run` launches in the interpreter; 1 on a GPU, where nobody counts."""
    if torch.cuda.is_available():
        run()
        return 1
    from tests.kernels.gpu.interpreter.memory import STATE

    before = STATE.num_launches
    run()
    return STATE.num_launches - before


SEGMENTS, NUM_ROWS = shared_prompt()
ANGLES = rope_table(9, 16, theta=10_000.0)[[0, 5, 8]]

OPS: dict[str, tuple[Callable[..., torch.Tensor], list[torch.Tensor]]] = {
    "rms_norm": (lambda x, w: rms_norm(x, w, eps=1e-5), [randn(5, 65), randn(65, seed=1)]),
    "swiglu": (swiglu, [randn(3, 20)]),
    "rope": (lambda x: rope(x, ANGLES.to(x.device)), [randn(3, 2, 16)]),
    "linear": (linear, [randn(3, 20), randn(9, 20, seed=1), randn(9, seed=2)]),
    "linear_logprobs": (
        lambda h, w: linear_logprobs(h, w, torch.arange(5, device=h.device), temperature=0.7)[0],
        [randn(5, 20), randn(70, 20, seed=1)],
    ),
    "packed_attention": (
        lambda q, k, v: packed_attention(
            q, k, v, packed_layout(SEGMENTS, num_rows=NUM_ROWS, device=q.device)
        ),
        make_qkv(NUM_ROWS),
    ),
}


@pytest.mark.parametrize("name", OPS)
def test_an_op_and_its_gradients_run_in_triton_and_agree_with_the_cpu(name, on_gpu):
    op, inputs = OPS[name]
    inputs = [on_gpu(x.clone()).requires_grad_() for x in inputs]
    outs: list[torch.Tensor] = []
    assert launched(lambda: outs.append(op(*inputs))) >= 1
    grad = randn(*outs[0].shape, seed=9)
    # a linear's gradients are products of the GEMM library, rope's are the same kernel
    assert launched(lambda: outs[0].backward(on_gpu(grad))) >= (0 if name == "linear" else 1)

    truth = [x.detach().double().cpu().requires_grad_() for x in inputs]
    expected = op(*truth)
    expected.backward(grad.double())
    torch.testing.assert_close(
        outs[0].detach().cpu().double(), expected.detach(), rtol=1e-4, atol=1e-4
    )
    for x, true in zip(inputs, truth, strict=True):
        torch.testing.assert_close(x.grad.cpu().double(), true.grad, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_layer_forward_of_the_engine_gives_the_bits_of_the_trainers(on_gpu):
    q, k, v = (on_gpu(x) for x in make_qkv(sum(LENGTHS), dtype=torch.bfloat16))
    k[130:258], v[130:258] = k[:128], v[:128]
    layout = packed_layout(whole_sequences(LENGTHS), num_rows=len(q), device=q.device)
    trained = packed_attention(q, k, v, layout)
    shape = (16, k.shape[1], BLOCK_SIZE, k.shape[2])
    cache = PagedKV.zeros(
        shape,
        dtype=k.dtype,
        is_int8=False,
        make=lambda s, d: on_gpu(torch.zeros(tuple(s), dtype=d)),
    )
    start = 0
    for table, length in zip(TABLES, LENGTHS, strict=True):
        places = torch.arange(length)
        blocks, rows = torch.tensor(table)[places // BLOCK_SIZE], slice(start, start + length)
        inputs = (k[rows], v[rows], on_gpu(blocks), on_gpu(places % BLOCK_SIZE))
        assert launched(partial(cache.write, *inputs)) == 1
        start += length
    segments = last_queries(TABLES, LENGTHS, 2)
    rows = torch.tensor(
        [n for end in torch.tensor(LENGTHS).cumsum(0).tolist() for n in (end - 2, end - 1)]
    )
    layout = paged_layout(segments, num_rows=6, block_size=BLOCK_SIZE, device=q.device)
    assert torch.equal(paged_attention(q[rows], cache, layout), trained[rows])


@torch.no_grad()
def test_the_sampler_reports_the_bits_of_the_loss(on_gpu):
    hidden, weight = (
        on_gpu(randn(5, 40, dtype=torch.bfloat16)),
        on_gpu(randn(1100, 40, seed=1, dtype=torch.bfloat16)),
    )
    logits = head_logits(hidden, weight)
    assert logits.dtype == torch.float32
    sums = vocab_sums(logits, on_gpu(torch.full((5,), 1 / 0.7, dtype=torch.float64)))
    keys = on_gpu(torch.tensor([[7, i, 0] for i in range(5)]))
    tokens = sample(sums, philox_uniform(keys, on_gpu(torch.arange(5))))
    trained = linear_logprobs(hidden, weight, tokens, temperature=0.7)[0]
    assert torch.equal(trained, sums.logprobs(tokens))


def test_float64_and_integers_stay_with_tensor_operations(on_gpu):
    assert runs_in_triton(on_gpu(torch.zeros(1, dtype=torch.float16)))
    assert not runs_in_triton(on_gpu(torch.zeros(1, dtype=torch.float64)))
    assert not runs_in_triton(on_gpu(torch.zeros(1, dtype=torch.int64)))


def test_a_cpu_tensor_is_never_for_triton_outside_of_the_switch():
    assert not runs_in_triton(torch.zeros(1))
