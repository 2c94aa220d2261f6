"""Optimisers, the average of weights, and resuming them bit for bit."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rl.algorithms.rloo import rloo_loss
from rl.trainer.config import OptimizerKind, TrainerConfig
from rl.trainer.weights.replicated import ReplicatedWeights
from rollout.models.checkpoint import save_checkpoint
from tests.rl.trainer.training_cases import assert_same, backend_of, lora, train, weights
from tests.tiny_models import save_tiny

MUON = {"optimizer": OptimizerKind.muon}


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With biases."""
    return save_tiny(tmp_path_factory.mktemp("qwen2"), "qwen2")


@pytest.mark.parametrize(
    "config",
    [MUON, {"ema_decay": 0.9}, {"lora": lora()}, {**MUON, "ema_decay": 0.9, "lora": lora()}],
    ids=["muon", "ema", "lora", "all"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_resumed_run_goes_on_bit_for_bit(qwen2, config, dtype):
    first, _, _ = backend_of(qwen2, dtype, **config)
    train(first, rloo_loss, steps=2)
    saved = copy.deepcopy(first.state_dict())
    second, _, _ = backend_of(qwen2, dtype, **config)
    second.load_state_dict(saved)
    assert_same(weights(second), weights(first))
    for backend in (first, second):
        train(backend, rloo_loss, steps=2)
    assert_same(weights(second), weights(first))
    first_average, second_average = (b.state_dict().get("average", []) for b in (first, second))
    assert len(first_average) == (len(saved["masters"]) if "ema_decay" in config else 0)
    for a, b in zip(first_average, second_average, strict=True):
        assert torch.equal(a, b)


# --- Muon


def test_muon_has_the_matrices_of_the_layers_and_adamw_the_rest(qwen2):
    backend, decoder, _ = backend_of(qwen2, **MUON)
    state = backend.state_dict()["optimizer"]
    layers = 2 * 7  # q, k, v, o, gate, up, down
    assert len(state["muon"]["param_groups"][0]["params"]) == layers
    # embedding, last norm; of each layer two norms and the bias of q, k and v
    assert len(state["adamw"]["param_groups"][0]["params"]) == 2 + 2 * 3
    assert len(list(decoder.parameters())) == 2 + 2 * 3 + 2 * 4


def test_muon_makes_each_fused_matrix_orthogonal_by_itself():
    # rows of q, k and v; v's gradient is a thousand times q's
    sizes, generator = [6, 3, 3], torch.Generator().manual_seed(0)
    gradient = torch.randn(12, 8, generator=generator)
    gradient[9:] *= 1000
    fused = torch.nn.Parameter(torch.zeros(12, 8))
    config = TrainerConfig(**MUON, max_grad_norm=1e9)
    made = ReplicatedWeights([fused], config, matrices={fused: sizes})
    fused.grad.copy_(gradient)
    made.step(1.0)
    for part, grad in zip(fused.detach().split(sizes), gradient.split(sizes), strict=True):
        alone = torch.nn.Parameter(torch.zeros_like(grad))
        alone.grad = grad.clone()
        torch.optim.Muon([alone], lr=1.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
        assert torch.equal(part, alone)
        # five iterations in bf16 leave singular values between 0.5 and 1.5 of what they aim at
        scaled = torch.linalg.svdvals(part) / (0.2 * max(part.shape) ** 0.5)
        assert 0.4 < float(scaled.min()) <= float(scaled.max()) < 1.6


def test_a_run_of_the_other_optimiser_is_not_resumed(qwen2):
    adamw, _, _ = backend_of(qwen2)
    muon, _, _ = backend_of(qwen2, **MUON)
    before = weights(muon)
    with pytest.raises(ValueError, match=r"trainer\.optimizer must be that of the run .* adamw"):
        muon.load_state_dict(adamw.state_dict())
    assert_same(weights(muon), before)


def test_a_run_that_trained_other_tensors_is_not_resumed(qwen2):
    whole, small = backend_of(qwen2)[0], backend_of(qwen2, lora=lora(3))[0]
    adapted, _, _ = backend_of(qwen2, lora=lora(4))
    with pytest.raises(ValueError, match=r"it trained 16 with .* keep its model and its"):
        adapted.load_state_dict(whole.state_dict())
    with pytest.raises(ValueError, match=r"trained 28 with 6,144 .* this one has 28 with 8,192"):
        adapted.load_state_dict(small.state_dict())


# --- the average


def test_the_average_follows_the_masters_exponentially_in_fp32(qwen2):
    backend, _, _ = backend_of(qwen2, torch.bfloat16, ema_decay=0.75)
    masters = backend.state_dict()["masters"]
    expected = [m.detach().double() for m in masters]
    for _ in range(3):
        train(backend, rloo_loss, steps=1, rate=1e-6)  # far below the resolution of bf16
        pairs = zip(expected, masters, strict=True)
        expected = [0.75 * e + 0.25 * m.detach().double() for e, m in pairs]
    average = backend.state_dict()["average"]
    assert {a.dtype for a in average} == {torch.float32}
    for a, e in zip(average, expected, strict=True):
        torch.testing.assert_close(a, e.float(), rtol=1e-6, atol=1e-9)
    assert any(not torch.equal(a, m) for a, m in zip(average, masters, strict=True))


def test_a_step_that_is_skipped_leaves_the_average(qwen2):
    backend, _, _ = backend_of(qwen2, ema_decay=0.5)
    train(backend, rloo_loss, steps=1)
    before = [a.clone() for a in backend.state_dict()["average"]]
    backend.state_dict()["masters"][0].grad[0] = float("nan")
    backend.step(1.0)
    for a, b in zip(backend.state_dict()["average"], before, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("config", [{}, {"lora": lora()}], ids=["whole", "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_average_is_written_as_a_hugging_face_directory_and_training_goes_on(
    qwen2, tmp_path, config, dtype
):
    backend, _, _ = backend_of(qwen2, dtype, ema_decay=0.5, **config)
    train(backend, rloo_loss, steps=2)
    before, state = weights(backend), copy.deepcopy(backend.state_dict())
    save_checkpoint(before, source=qwen2, directory=tmp_path, dtype=dtype)
    backend.write_beside(tmp_path)
    assert_same(weights(backend), before)
    for name in ("masters", "average"):
        for a, b in zip(backend.state_dict()[name], state[name], strict=True):
            assert torch.equal(a, b), name
    # the same as a run whose weights are the average
    averaged, _, _ = backend_of(qwen2, dtype, ema_decay=0.5, **config)
    averaged.load_state_dict({**state, "masters": state["average"]})
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "ema", dtype=dtype).state_dict()
    for name, tensor in weights(averaged).items():
        assert torch.equal(saved[name], tensor), name
    assert any(not torch.equal(saved[n], before[n]) for n in before)
    assert (tmp_path / "ema" / "tokenizer.json").is_file()


def test_without_an_average_or_adapters_nothing_is_written_beside(qwen2, tmp_path):
    backend_of(qwen2)[0].write_beside(tmp_path)
    assert list(tmp_path.iterdir()) == []
