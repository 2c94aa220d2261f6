"""Runs of models, templates and losses that are not as they should be: what is said, the exit code, what is kept."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from rollout.config import TINY, ModelConfig
from rollout.models.sources import resolve_model
from tests.e2e.runs import ANYTHING, run_script, steps_of, train
from tests.rollout.text.byte_tokenizers import QWEN3_LIKE

BAD = ("algorithm=custom", "algorithm.path=tests/e2e/overflowing_algorithm.py:Overflowing")


@pytest.fixture
def model(tmp_path):
    """A copy of the tiny model, to be changed."""
    return shutil.copytree(resolve_model(ModelConfig(path=TINY)), tmp_path / "model")


def of(model):
    return ("model=hf", f"model.path={model}", ANYTHING, "trainer.num_steps=1")


def sentence_of(output):
    assert "Traceback" not in output
    return " ".join(output.split())


def test_a_checkpoint_with_one_nan_is_refused_by_the_name_of_its_tensor(model, tmp_path):
    path = model / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, path)
    output = train(tmp_path / "run", *of(model), code=2)
    assert "model.norm.weight of" in sentence_of(output)
    assert not (tmp_path / "run" / "weights").exists()


def test_a_run_of_skipped_steps_stops_with_exit_1_and_keeps_nothing(tmp_path):
    overrides = (ANYTHING, *BAD, "trainer.num_steps=9", "checkpoint.every_steps=1")
    output = train(tmp_path, *overrides, code=1)
    assert "3 steps in a row were skipped" in sentence_of(output)
    assert not (tmp_path / "weights").exists()
    norms = [row["optimizer/grad_norm"] for row in steps_of(tmp_path)]
    assert len(norms) == 2
    assert all(norm != norm for norm in norms)
    for line in (tmp_path / "events.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.slow  # two runs
def test_few_skipped_steps_end_a_run_only_where_no_other_follows(tmp_path):
    output = train(tmp_path / "all", ANYTHING, *BAD, "trainer.num_steps=2", code=1)
    assert "all 2 steps were skipped" in sentence_of(output)
    assert not (tmp_path / "all" / "weights").exists()
    train(tmp_path / "few", ANYTHING, *BAD, "algorithm.params.num_bad=2", "trainer.num_steps=3")
    assert (tmp_path / "few" / "weights" / "v3").is_dir()


def test_weights_that_overflow_are_not_kept(tmp_path):
    overrides = ("trainer.learning_rate=1e38", "trainer.num_steps=6", "checkpoint.every_steps=0")
    output = train(tmp_path, ANYTHING, *overrides, code=1)
    assert "holds NaN or infinite values, so the version is not kept" in sentence_of(output)
    assert not (tmp_path / "weights" / "LATEST").exists()


def test_a_chat_with_a_published_version_is_the_chat_that_was_trained(model, tmp_path, caplog):
    (model / "chat_template.jinja").write_text(QWEN3_LIKE)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"eos_token_id": 256}))
    (model / "generation_config.json").write_text('{"eos_token_id": []}')
    output = train(
        tmp_path / "run",
        *of(model),
        "sampling.stop=['Q:']",
        "task.reply_prefix='Answer: '",
        "model.chat_template_kwargs.enable_thinking=false",
    )
    assert "<|endoftext|> (256), <|im_end|> (258)" in output
    assert "chat template's end of a turn is <|im_end|> (258)" in caplog.text
    published = tmp_path / "run/weights/v1"
    served = json.loads((published / "generation_config.json").read_text())
    assert (served["eos_token_id"], served["stop_strings"]) == ([256, 258], ["Q:"])
    example = json.loads((published / "prompt.json").read_text())["example"]
    end = "<|im_start|>assistant\n<think>\n\n</think>\n\nAnswer: "
    assert example["prompt"].endswith(end)
    assert "enable_thinking = False" in (published / "chat_template.jinja").read_text()


def test_a_base_model_trains_on_plain_text_when_told_to(model, tmp_path):
    (model / "chat_template.jinja").unlink()
    refused = sentence_of(train(tmp_path / "refused", *of(model), code=2))
    assert "model.chat_template=plain" in refused
    plain = "model.chat_template=plain"
    train(tmp_path / "run", *of(model), plain, "task.system_prompt=Add.")
    example = json.loads((tmp_path / "run/weights/v1/prompt.json").read_text())["example"]
    assert example["prompt"].startswith("Add.\n\n")
    run_script("generate", "model=hf", f"model.path={model}", plain, "prompts=['1 + 1 =']")
