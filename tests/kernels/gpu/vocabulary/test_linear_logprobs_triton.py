import pytest
import torch

from kernels.gpu.vocabulary.grad_logits import grad_logits_triton
from kernels.gpu.vocabulary.linear_logprobs import linear_logprobs_triton
from kernels.gpu.vocabulary.sample import lm_head_sample_triton
from kernels.linear_logprobs import linear_logprobs_reference
from kernels.sample import sample_reference
from tests.kernels.accuracy import randn

WIDTH = 80  # one past a tile of 64, and no power of two


def head(num_rows: int, vocab_size: int, dtype: torch.dtype = torch.float32):
    """Rows, weights, and tokens that lie at both ends of the vocabulary."""
    hidden, weight = (
        randn(num_rows, WIDTH, dtype=dtype),
        randn(vocab_size, WIDTH, seed=1, dtype=dtype) * 0.3,
    )
    tokens = torch.arange(num_rows) * 137 % vocab_size
    tokens[0], tokens[-1] = 0, vocab_size - 1
    return hidden, weight, tokens


def computed(hidden, weight, tokens, temperature: float, device: str):
    inverse = torch.full((len(hidden),), 1 / temperature)
    return linear_logprobs_triton(*(x.to(device) for x in (hidden, weight, tokens, inverse)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("num_rows", "vocab_size"), [(1, 1), (3, 1300), (130, 129)])
def test_log_probability_and_entropy_agree_with_float64(num_rows, vocab_size, dtype, device):
    hidden, weight, tokens = head(num_rows, vocab_size, dtype)
    logprobs, entropy, *_ = computed(hidden, weight, tokens, 0.7, device)
    truth = linear_logprobs_reference(hidden.double(), weight.double(), tokens, temperature=0.7)
    torch.testing.assert_close(logprobs.cpu().double(), truth[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.cpu().double(), truth[1], rtol=1e-5, atol=1e-5)


def test_columns_past_the_vocabulary_count_nothing_though_all_logits_are_very_low(device):
    hidden, weight = torch.ones(2, 16), torch.full((130, 16), -50.0 / 16)
    logprobs, entropy, maximum, total = computed(
        hidden, weight, torch.tensor([0, 129]), 1.0, device
    )
    torch.testing.assert_close(logprobs.cpu(), torch.full((2,), 130.0).log().neg())
    torch.testing.assert_close(entropy.cpu(), torch.full((2,), 130.0).log())
    assert (maximum.tolist(), total.tolist()) == ([-50.0, -50.0], [130.0, 130.0])


def test_a_row_is_the_same_bits_in_any_batch(device):
    hidden, weight, tokens = head(131, 140, torch.bfloat16)
    whole = computed(hidden, weight, tokens, 1.0, device)
    for rows in (slice(3, 4), slice(100, 131)):
        part = computed(hidden[rows], weight, tokens[rows], 1.0, device)
        assert all(torch.equal(x, y[rows]) for x, y in zip(part, whole, strict=True))


def test_rows_in_chunks_give_the_bits_of_one(device, monkeypatch):
    inputs = head(5, 140)
    whole = computed(*inputs, 1.0, device)
    monkeypatch.setattr("kernels.gpu.vocabulary.linear_logprobs._FORWARD_ROWS", 2)
    for x, y in zip(computed(*inputs, 1.0, device), whole, strict=True):
        assert torch.equal(x, y)


def test_the_gradient_of_the_logits_agrees_with_float64(device):
    hidden, weight, tokens = head(130, 140)
    grad, inverse = randn(130, seed=2), torch.full((130,), 1 / 0.7)
    logits = (hidden.double() @ weight.double().T).requires_grad_()
    (logits / 0.7).log_softmax(-1).gather(-1, tokens[:, None])[:, 0].backward(grad.double())
    _, _, *sums = computed(hidden, weight, tokens, 0.7, device)
    inputs = (x.to(device) for x in (hidden, weight, inverse, tokens, *sums, grad))
    got = grad_logits_triton(*inputs)
    torch.testing.assert_close(got.cpu().double(), logits.grad, rtol=1e-4, atol=1e-6)


def test_the_sampler_reports_the_bits_of_the_loss_and_draws_as_the_reference_does(device):
    hidden, weight, _ = head(6, 2100, torch.bfloat16)
    inverse = torch.tensor([1.0, 0.5, 2.0, 1.0, 3.0, 1.0])
    uniforms = torch.tensor([0.0, 0.3, 0.5, 0.77, 0.9, 0.9999])
    inputs = [x.to(device) for x in (hidden, weight, inverse, uniforms)]
    tokens, logprobs, logits = lm_head_sample_triton(*inputs)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(
        logits.cpu(), hidden.float() @ weight.float().T, rtol=1e-5, atol=1e-5
    )
    scaled = logits.cpu().double() * inverse.double()[:, None]
    expected = [
        sample_reference(row.softmax(-1), float(u)) for row, u in zip(scaled, uniforms, strict=True)
    ]
    assert tokens.tolist() == expected
    trained = linear_logprobs_triton(inputs[0], inputs[1], tokens, inputs[2])[0]
    assert torch.equal(logprobs, trained)
    alone = lm_head_sample_triton(inputs[0][2:3], inputs[1], inputs[2][2:3], inputs[3][2:3])
    assert (alone[0][0], alone[1][0]) == (tokens[2], logprobs[2])


def test_rows_of_none_give_none(device):
    hidden, weight = torch.zeros(0, 16).to(device), torch.zeros(40, 16).to(device)
    none = torch.zeros(0).to(device)
    assert linear_logprobs_triton(hidden, weight, none.long(), none)[0].shape == (0,)
    assert lm_head_sample_triton(hidden, weight, none, none)[0].shape == (0,)
