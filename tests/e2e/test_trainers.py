"""Adapters, Muon, an average of weights, recomputed layers: whole runs of the tiny model."""

from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.e2e.runs import steps_of, train, weights_of

LORA = ("trainer.lora.rank=4", "trainer.lora.alpha=8")
FP32 = "model.dtype=float32"
KL = "algorithm.kl_coef=0.01"  # so that every step forwards every row, with signal or without
EVERYTHING = (FP32, KL, *LORA, "trainer.optimizer=muon", "trainer.ema_decay=0.9")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("adapted") / "run"
    train(run_dir, *EVERYTHING, "trainer.num_steps=4", "trainer.learning_rate=1e-2")
    return run_dir


def differences(run_dir: Path) -> list[float]:
    return [row["mismatch/logprob_difference_max"] for row in steps_of(run_dir)]


def base_of(adapter: Path) -> AutoModelForCausalLM:
    """The model that adapter_config.json names."""
    config = peft.LoraConfig.from_pretrained(adapter)
    return AutoModelForCausalLM.from_pretrained(config.base_model_name_or_path, dtype=torch.float32)


def test_trainer_and_engine_agree_bit_for_bit_with_adapters(adapted):
    assert set(differences(adapted)) == {0.0}


@torch.no_grad()
def test_a_checkpoint_holds_the_merged_weights_the_adapter_and_the_average(adapted):
    directory = adapted / "weights" / "v4"
    base = base_of(directory / "adapter")
    tokens = torch.tensor([[256, 65, 66, 67]])
    logits = {"base": base(tokens).logits}
    for name, path in (("merged", directory), ("average", directory / "ema")):
        logits[name] = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(
            tokens
        ).logits
    logits["peft"] = peft.PeftModel.from_pretrained(base, directory / "adapter")(tokens).logits
    torch.testing.assert_close(logits["peft"], logits["merged"], rtol=1e-4, atol=1e-5)
    moved = [float((logits[n] - logits["base"]).abs().max()) for n in ("merged", "average")]
    assert moved[0] > moved[1] > 1e-3, "the average lags behind"


def test_a_resumed_run_has_bitwise_the_weights_adapter_and_average(adapted, tmp_path):
    half, resumed = tmp_path / "half", tmp_path / "resumed"
    rate = "trainer.learning_rate=1e-2"
    train(half, *EVERYTHING, rate, "trainer.num_steps=2")
    train(resumed, *EVERYTHING, rate, "trainer.num_steps=4", f"resume_from={half}")
    for name in ("model", "ema/model", "adapter/adapter_model"):
        first, second = (
            load_file(run / "weights" / "v4" / f"{name}.safetensors") for run in (adapted, resumed)
        )
        assert all(torch.equal(first[n], second[n]) for n in first), name


def test_a_run_may_begin_with_an_adapter_and_its_engine_has_it_from_the_start(adapted, tmp_path):
    path = adapted / "weights" / "v4" / "adapter"
    begin = (FP32, KL, *LORA, f"trainer.lora.path={path}", "trainer.learning_rate=0")
    train(tmp_path / "run", *begin, "trainer.num_steps=2")
    assert set(differences(tmp_path / "run")) == {0.0}
    first, second = weights_of(adapted, 4), weights_of(tmp_path / "run", 2)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_recomputing_layers_trains_bitwise_the_same_weights(tmp_path):
    found = []
    for recomputes in ("false", "true"):
        run_dir = tmp_path / recomputes
        train(run_dir, KL, "trainer.num_steps=2", f"trainer.activation_checkpointing={recomputes}")
        found.append(weights_of(run_dir, 2))
    assert set(differences(run_dir)) == {0.0}
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("trainer.lora.rank=3",), "a run that trained the same tensors: it trained 28 with"),
        (("trainer.optimizer=adamw",), "trainer.optimizer must be that of the run that is resumed, muon"),
    ],
)  # fmt: skip
def test_another_rank_or_optimiser_is_not_resumed(adapted, tmp_path, overrides, message):
    resume = f"resume_from={adapted}"
    overrides = (*overrides, "trainer.num_steps=5")
    output = train(tmp_path / "run", *EVERYTHING, resume, *overrides, code=2)
    assert message in output.replace("\n", " ")
    assert not (tmp_path / "run" / "events.jsonl").exists()


def test_a_checkpoint_of_another_architecture_is_not_resumed(adapted, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    source = adapted / "weights" / "v4"
    for path in source.iterdir():
        if path.is_file():
            (other / path.name).write_bytes(path.read_bytes())
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(
        config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    )
    output = train(
        tmp_path / "run",
        "model=hf",
        f"model.path={other}",
        f"resume_from={adapted}",
        "trainer.num_steps=5",
        code=2,
    )
    assert "must be a run of the same model as `model`" in output.replace("\n", " ")
    assert "num_layers 2 instead of 3" in output.replace("\n", " ")


def test_adapters_on_another_base_are_not_resumed(adapted, tmp_path):
    # of the same shape: the merged weights themselves
    base = f"model.path={adapted / 'weights' / 'v4'}"
    output = train(
        tmp_path / "run",
        *EVERYTHING,
        "model=hf",
        base,
        f"resume_from={adapted}",
        "trainer.num_steps=5",
        code=2,
    )
    assert "keep model.path and model.dtype as they were" in output.replace("\n", " ")
