import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import kernels.linear_logprobs
from kernels.linear import linear
from kernels.linear_logprobs import linear_logprobs, linear_logprobs_reference
from kernels.token_logprobs import token_logprobs
from tests.kernels.accuracy import assert_as_accurate, randn

DTYPES = [torch.float32, torch.bfloat16]
WIDTH = 16


def make_head(num_rows, vocab_size, *, dtype=torch.float32):
    """hidden, LM head, tokens; the first and the last token among them."""
    hidden, weight = (
        randn(num_rows, WIDTH, dtype=dtype),
        randn(vocab_size, WIDTH, seed=1, dtype=dtype),
    )
    token_ids = (torch.arange(num_rows) * 37) % vocab_size
    token_ids[-1] = vocab_size - 1
    return hidden, weight, token_ids


def set_chunk(monkeypatch, num_elements):
    monkeypatch.setattr(kernels.linear_logprobs, "_CHUNK_ELEMENTS", num_elements)


def gradients(op, hidden, weight, token_ids, grad, **options):
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    return torch.autograd.grad(op(*leaves, token_ids, **options)[0], leaves, grad)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("vocab_size", [17, 1024, 1025, 2500])
def test_logprobs_and_entropy_match_the_reference_in_float64(vocab_size, temperature):
    head = make_head(5, vocab_size, dtype=torch.float64)
    got = linear_logprobs(*head, temperature=temperature)
    expected = linear_logprobs_reference(*head, temperature=temperature)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logprobs_are_bitwise_those_of_the_sampler(dtype):
    hidden, weight, token_ids = make_head(9, 1025, dtype=dtype)
    got, _ = linear_logprobs(hidden, weight, token_ids, temperature=0.7)
    logits = linear(hidden, weight)
    assert torch.equal(got, token_logprobs(logits, token_ids, temperature=0.7))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_is_the_same_bits_in_any_chunk_and_any_batch(monkeypatch, dtype):
    hidden, weight, token_ids = make_head(130, 1025, dtype=dtype)
    whole, _ = linear_logprobs(hidden, weight, token_ids)
    set_chunk(monkeypatch, 1)  # 64 rows, the fewest
    chunked, _ = linear_logprobs(hidden, weight, token_ids)
    assert torch.equal(chunked, whole)
    for rows in (slice(0, 1), slice(5, 8), slice(63, 65), slice(129, 130)):
        part, _ = linear_logprobs(hidden[rows], weight, token_ids[rows])
        assert torch.equal(part, whole[rows])


# 64 rows a chunk: one row, one chunk, one row more, two chunks and two rows
@pytest.mark.parametrize("num_rows", [1, 64, 65, 130])
@pytest.mark.parametrize("vocab_size", [17, 1025])
def test_gradients_match_autograd_of_the_reference_in_float64(monkeypatch, num_rows, vocab_size):
    set_chunk(monkeypatch, 1)
    head = make_head(num_rows, vocab_size, dtype=torch.float64)
    grad = randn(num_rows, seed=2, dtype=torch.float64)
    got = gradients(linear_logprobs, *head, grad, temperature=0.6)
    expected = gradients(linear_logprobs_reference, *head, grad, temperature=0.6)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_gradients_do_not_depend_on_the_chunks(monkeypatch):
    head, grad = make_head(200, 40, dtype=torch.float64), randn(200, seed=2, dtype=torch.float64)
    whole = gradients(linear_logprobs, *head, grad)
    set_chunk(monkeypatch, 70 * 40)
    torch.testing.assert_close(
        gradients(linear_logprobs, *head, grad), whole, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_as_accurate_as_pytorchs(dtype):
    hidden, weight, token_ids = make_head(9, 300, dtype=dtype)
    grad = randn(9, seed=2)
    truth = gradients(
        linear_logprobs_reference, hidden.double(), weight.double(), token_ids, grad.double()
    )
    peer = gradients(linear_logprobs_reference, hidden, weight, token_ids, grad)
    got = gradients(linear_logprobs, hidden, weight, token_ids, grad)
    for g, p, t in zip(got, peer, truth, strict=True):
        assert_as_accurate(g, peer=p, truth=t)


def test_a_token_drawn_twice_has_its_gradient_twice():
    hidden, weight, _ = make_head(2, 5, dtype=torch.float64)
    hidden[1] = hidden[0]
    token_ids, grad = torch.tensor([3, 3]), torch.tensor([1.0, 2.0], dtype=torch.float64)
    together = gradients(linear_logprobs, hidden, weight, token_ids, grad)[1]
    alone = gradients(linear_logprobs, hidden[:1], weight, token_ids[:1], grad[:1])[1]
    torch.testing.assert_close(together, 3 * alone, rtol=1e-12, atol=1e-12)


def test_a_token_without_weight_adds_no_gradient():
    hidden, weight, token_ids = make_head(3, 40, dtype=torch.float64)
    grad = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    grad_hidden, _ = gradients(linear_logprobs, hidden, weight, token_ids, grad)
    assert (grad_hidden != 0).any(1).tolist() == [True, False, True]


def test_entropy_is_a_metric_without_a_gradient():
    hidden, weight, token_ids = make_head(3, 40)
    logprobs, entropy = linear_logprobs(hidden.requires_grad_(), weight, token_ids)
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def test_no_rows_give_no_rows():
    hidden, weight, token_ids = (t[:0] if t.ndim == 1 else t for t in make_head(1, 40))
    hidden = hidden[:0].requires_grad_()
    logprobs, entropy = linear_logprobs(hidden, weight.requires_grad_(), token_ids)
    assert logprobs.shape == entropy.shape == (0,)
    logprobs.sum().backward()
    assert not weight.grad.any()


def test_a_temperature_that_is_not_positive_is_named():
    with pytest.raises(ValueError, match=r"temperature must be > 0, got 0"):
        linear_logprobs(*make_head(1, 4), temperature=0)


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made inside it hold at any time."""

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._storages[StorageWeakRef(storage)] = storage.nbytes()
        self._storages = {ref: n for ref, n in self._storages.items() if not ref.expired()}
        self.peak = max(self.peak, sum(self._storages.values()))
        return out


def peak_bytes(op, num_rows, dtype) -> int:
    """Of forward and backward, on top of the inputs."""
    hidden, weight, token_ids = make_head(num_rows, 4096, dtype=dtype)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    with LiveBytes() as live:
        op(*leaves, token_ids)[0].sum().backward()
    return live.peak


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_memory_does_not_grow_with_tokens_times_vocabulary(monkeypatch, dtype):
    set_chunk(monkeypatch, 1)  # 64 rows
    few, many = (peak_bytes(linear_logprobs, n, dtype) for n in (64, 640))
    # of each row more: its gradient, and some numbers of 4 or 8 bytes
    assert many - few < 576 * (WIDTH * dtype.itemsize + 16 * 8)
    few, many = (peak_bytes(linear_logprobs_reference, n, dtype) for n in (64, 640))
    assert many - few > 2 * 576 * 4096 * dtype.itemsize, "what is counted"


def test_the_backward_computes_the_logits_again_in_the_same_chunks(monkeypatch):
    set_chunk(monkeypatch, 1)
    seen = []

    def counted(hidden, weight):
        seen.append(len(hidden))
        return linear(hidden, weight)

    monkeypatch.setattr(kernels.linear_logprobs, "head_logits", counted)
    hidden, weight, token_ids = make_head(130, 40)
    logprobs, _ = linear_logprobs(hidden.requires_grad_(), weight, token_ids)
    assert seen == [64, 64, 2]
    logprobs.sum().backward()
    assert seen == [64, 64, 2] * 2


@pytest.mark.parametrize("frozen", [0, 1], ids=["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient_and_the_other_the_same(frozen):
    hidden, weight, token_ids = make_head(9, 40)
    both = gradients(linear_logprobs, hidden, weight, token_ids, randn(9, seed=2))
    leaves = [hidden.clone(), weight.clone()]
    leaves[1 - frozen].requires_grad_()
    logprobs, _ = linear_logprobs(*leaves, token_ids)
    logprobs.backward(randn(9, seed=2))
    assert leaves[frozen].grad is None
    assert torch.equal(leaves[1 - frozen].grad, both[1 - frozen])
