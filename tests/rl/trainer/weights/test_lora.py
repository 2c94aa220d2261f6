"""What is published is what the forward used, peft reads what is saved, and the gradient is that of the merged weight."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rl.algorithms.rloo import rloo_loss
from rl.trainer.config import LORA_TARGETS
from rl.trainer.weights import adapter_files
from rl.trainer.weights.lora import Adapter, LoRALinear, count_adapter_parameters
from rollout.models.checkpoint import load_decoder, save_checkpoint
from rollout.models.layers import Linear
from tests.rl.trainer.training_cases import (
    assert_same,
    backend_of,
    lora,
    micro_batches,
    train,
    weights,
)
from tests.tiny_models import save_tiny

TOKENS = torch.tensor([[5, 6, 7, 255, 9, 30]])


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def base(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied with biases; untied with norms of queries and keys, and a head wider than the hidden size over heads."""
    return save_tiny(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("qwen2"), "qwen2")


def trained(directory: Path, dtype: torch.dtype = torch.float64, **config):
    made = backend_of(directory, dtype, lora=lora(**config))
    train(made[0], rloo_loss, steps=3)
    return made


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def saved_by_peft(directory: Path, target: Path, **config) -> torch.Tensor:
    """Logits of an adapter that peft made and wrote to `target`, with factors of one size."""
    settings = {"r": 3, "lora_alpha": 6, "target_modules": list(LORA_TARGETS), **config}
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64),
        peft.LoraConfig(task_type="CAUSAL_LM", **settings),
    )
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator).double()
    model.save_pretrained(target)
    return logits_of(model)


# --- files


def test_the_merged_weights_and_the_adapter_in_peft_give_the_same_logits(base, tmp_path):
    backend, _, adapters = trained(base)
    merged, adapter = tmp_path / "merged", tmp_path / "adapter"
    merged.mkdir()
    save_checkpoint(weights(backend), source=base, directory=merged, dtype=torch.float64)
    adapters.save(adapter)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    before = logits_of(plain)
    ours = logits_of(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float64))
    theirs = logits_of(peft.PeftModel.from_pretrained(plain, adapter))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    assert (ours - before).abs().max() > 1e-2


def test_an_adapter_that_peft_saved_is_a_beginning(base, tmp_path):
    expected = saved_by_peft(base, tmp_path / "adapter")
    backend, _, _ = backend_of(base, lora=lora(path=str(tmp_path / "adapter")))
    merged = tmp_path / "merged"
    merged.mkdir()
    save_checkpoint(weights(backend), source=base, directory=merged, dtype=torch.float64)
    got = logits_of(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float64))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_an_adapter_survives_a_round_trip_bit_for_bit(qwen2, tmp_path):
    backend, _, adapters = trained(qwen2, torch.float32)
    adapters.save(tmp_path / "adapter")
    again, _, _ = backend_of(qwen2, torch.float32, lora=lora(path=str(tmp_path / "adapter")))
    assert_same(weights(again), weights(backend))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"r": 4}, r"rank 3 and alpha 6 without extensions, got r=4"),
        ({"lora_alpha": 3}, r"got lora_alpha=3"),
        ({"use_rslora": True}, r"got use_rslora=True"),
        ({"target_modules": ["q_proj"]}, r"got 4 tensors instead of 28"),
    ],
)
def test_an_adapter_that_means_something_else_is_refused(qwen2, tmp_path, made, message):
    saved_by_peft(qwen2, tmp_path / "adapter", **made)
    with pytest.raises(ValueError, match=message):
        backend_of(qwen2, lora=lora(path=str(tmp_path / "adapter")))


OTHER_VALUES = {
    "init_lora_weights": ["pissa", "pissa_niter_4", "olora", "corda", "eva", "loftq", "orthogonal"],
    "peft_type": ["ADALORA", "LOHA", None],
    "task_type": ["SEQ_CLS"],
    "bias": ["all", "lora_only"],
    "use_rslora": [True],
    "use_dora": [True],
    "lora_bias": [True],
    "fan_in_fan_out": [True],
    "rank_pattern": [{"q_proj": 5}],
    "alpha_pattern": [{"q_proj": 5}],
    "modules_to_save": [["lm_head"]],
    "layer_replication": [[[0, 2]]],
    "trainable_token_indices": [[1, 2]],
    "target_parameters": [["x"]],
    "alora_invocation_tokens": [[1]],
    "an_option_of_next_year": [1, True, "on"],
    "r": [5, None, True],
    "lora_alpha": [7, None],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in OTHER_VALUES.items() for v in vs])
def test_an_option_that_is_not_understood_is_refused_by_name(qwen2, tmp_path, key, value):
    saved_by_peft(qwen2, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=rf"trainer\.lora\.path .* got {key}="):
        backend_of(qwen2, torch.float64, lora=lora(path=str(tmp_path / "adapter")))


def test_every_option_of_peft_is_either_refused_or_known_to_change_nothing():
    options = peft.LoraConfig(task_type="CAUSAL_LM").to_dict()
    is_known = set(OTHER_VALUES) | {*adapter_files._ALLOWED, *adapter_files._FREE}
    # the others are off, and anything else is refused
    assert all(not options[key] for key in options.keys() - is_known)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_file_is_named(qwen2, tmp_path, file):
    saved_by_peft(qwen2, tmp_path / "adapter")
    path = tmp_path / "adapter" / file
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=str(path)):
        backend_of(qwen2, torch.float64, lora=lora(path=str(tmp_path / "adapter")))


def test_a_factor_that_is_not_finite_is_named(qwen2, tmp_path):
    saved_by_peft(qwen2, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(ValueError, match=f"{name} of .* holds NaN"):
        backend_of(qwen2, torch.float64, lora=lora(path=str(tmp_path / "adapter")))


def test_a_directory_without_an_adapter_is_named(qwen2, tmp_path):
    with pytest.raises(ValueError, match=r"trainer\.lora\.path must hold adapter_config\.json"):
        backend_of(qwen2, lora=lora(path=str(tmp_path)))
    (tmp_path / "adapter_config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"must hold adapter_model\.safetensors"):
        backend_of(qwen2, lora=lora(path=str(tmp_path)))


# --- the forward and the weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_forward_uses_the_published_weights_bit_for_bit(base, dtype):
    backend, _, _ = trained(base, dtype)
    plain, decoder, _ = backend_of(base, dtype)
    with torch.no_grad():
        for name, tensor in decoder.hf_tensors():
            tensor.copy_(weights(backend)[name])
    (batch,) = micro_batches()
    assert torch.equal(backend.logprobs(batch)[0], plain.logprobs(batch)[0])


def test_a_weight_is_the_base_and_its_adapter_summed_in_fp32_and_rounded_once(qwen2):
    backend, _, adapters = trained(qwen2, torch.bfloat16)
    got, factors = weights(backend), adapters.tensors()
    base_weights = dict(load_decoder(qwen2, dtype=torch.bfloat16).hf_tensors())
    prefix = "base_model.model.model.layers.1.mlp.up_proj.lora_"
    a, b = factors[f"{prefix}A.weight"], factors[f"{prefix}B.weight"]
    assert (a.dtype, b.dtype) == (torch.float32, torch.float32)
    name = "model.layers.1.mlp.up_proj.weight"
    expected = (base_weights[name].float() + (b @ a) * 2.0).bfloat16()
    assert torch.equal(got[name], expected)
    assert not torch.equal(got[name], base_weights[name])


def test_before_the_first_step_the_weights_are_the_bases(base):
    backend, _, _ = backend_of(base, torch.bfloat16, lora=lora())
    plain, _, _ = backend_of(base, torch.bfloat16)
    assert_same(weights(backend), weights(plain))


def test_only_the_targets_change_and_only_adapters_have_state(qwen2):
    backend, decoder, _ = trained(qwen2, targets=["q_proj", "down_proj"])
    plain = weights(backend_of(qwen2)[0])
    changed = {n for n, t in weights(backend).items() if not torch.equal(t, plain[n])}
    assert changed == {
        f"model.layers.{i}.{name}.weight"
        for i in range(2)
        for name in ("self_attn.q_proj", "mlp.down_proj")
    }
    state = backend.state_dict()
    assert [tuple(m.shape) for m in state["masters"]] == 2 * [(3, 64), (64, 3), (3, 128), (64, 3)]
    assert len(state["optimizer"]["adamw"]["state"]) == 8
    config = lora(targets=["q_proj", "down_proj"])
    count = sum(m.numel() for m in state["masters"])
    assert count_adapter_parameters(decoder, config) == count


# --- the gradient


def test_a_fused_linear_has_the_gradient_of_its_merged_weight():
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    plain = Linear(5, 9, bias=True).double().requires_grad_(False)
    plain.weight.copy_(noise(9, 5))
    plain.bias.copy_(noise(9))
    # the middle matrix has no adapter
    made = [
        Adapter(rows, 5, 2, like=plain.weight, generator=generator)
        for rows in (slice(0, 4), slice(6, 9))
    ]
    for adapter in made:
        adapter.b.data = noise(*adapter.b.shape)
    adapted = LoRALinear(plain, scale=0.5, adapters=made)
    adapted.merge()
    x, grad = noise(7, 5).requires_grad_(), noise(7, 9)
    leaves = [x, *(f for adapter in made for f in (adapter.a, adapter.b))]
    out = adapted(x)
    got = torch.autograd.grad(out, leaves, grad)
    updates = [0.5 * adapter.b @ adapter.a for adapter in made]
    base_weight = adapted._base + torch.cat([updates[0], torch.zeros(2, 5), updates[1]])
    truth = x @ base_weight.T + adapted.bias
    torch.testing.assert_close(out, truth, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(truth, leaves, grad)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("packing", [{}, {"max_tokens": 75, "share_prompts": False}], ids=str)
def test_the_gradient_of_the_model_is_that_of_all_weights_projected(base, packing):
    backend, _, adapters = trained(base)
    backend.forward_backward(micro_batches(**packing), rloo_loss, denominator=12.0)
    names, masters = list(adapters.tensors()), backend.state_dict()["masters"]
    got = {name: master.grad for name, master in zip(names, masters, strict=True)}
    factors = {name: tensor.clone() for name, tensor in adapters.tensors().items()}
    plain, decoder, _ = backend_of(base)
    with torch.no_grad():
        for name, tensor in decoder.hf_tensors():
            tensor.copy_(weights(backend)[name])
    plain.forward_backward(micro_batches(), rloo_loss, denominator=12.0)
    for parameter in decoder.parameters():
        parameter.data = parameter.grad  # so that hf_tensors names the gradients
    for name, tensor in decoder.hf_tensors():
        a_name = f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight"
        if a_name in got:
            b_name = a_name.replace("lora_A", "lora_B")
            a, b = factors[a_name], factors[b_name]
            torch.testing.assert_close(got.pop(a_name), 2 * b.T @ tensor, rtol=1e-9, atol=1e-13)
            torch.testing.assert_close(got.pop(b_name), 2 * tensor @ a.T, rtol=1e-9, atol=1e-13)
    assert not got


def test_bf16_gradients_are_accumulated_in_fp32(qwen2):
    backend, _, _ = trained(qwen2, torch.bfloat16)
    masters = backend.state_dict()["masters"]
    found = []
    for repeats in (1, 4):
        backend.clear_gradients()
        backend.forward_backward(micro_batches() * repeats, rloo_loss, denominator=12.0)
        found.append([m.grad.clone() for m in masters])
    for once, four_times in zip(*found, strict=True):
        assert once.dtype == torch.float32
        torch.testing.assert_close(four_times, 4 * once, rtol=1e-5, atol=1e-7)
