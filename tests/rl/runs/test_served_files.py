"""What lies beside published weights is what the run trained with."""

import json

import pytest
from transformers import AutoTokenizer, GenerationConfig

from rl.runs.served_files import ServedFiles
from rl.tasks.config import TaskConfig
from rl.tasks.form import PromptForm
from rl.tasks.prompts import make_prompt, problem_of
from rollout.config import ModelConfig, SamplingConfig
from rollout.text.chat import render_chat
from rollout.text.tokenizer import load_tokenizer
from tests.tiny_models import save_tiny

TASK = TaskConfig(system_prompt="brief", user_prompt="Q: {question}", reply_prefix="A: ")
PROMPT = make_prompt(
    0, problem=problem_of({"question": "2 + 2", "answer": "4"}), form=PromptForm.of(TASK)
)


@pytest.fixture
def written(tmp_path):
    directory = save_tiny(tmp_path, "llama", num_hidden_layers=1)
    (directory / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 256, "pad_token_id": 259, "eos_token_id": 256, "repetition_penalty": 1.1})
    )  # fmt: skip

    def write(model=None, **sampling):
        model = ModelConfig(path=str(directory), **model or {})
        served = ServedFiles(
            model=model,
            task=TASK,
            sampling=SamplingConfig(**sampling),
            tokenizer=load_tokenizer(directory, model),
            eos_token_ids=(258, 256),
            example=PROMPT,
        )
        served.write(directory)
        return directory

    return write


def test_transformers_generates_as_the_run_sampled(written):
    directory = written(temperature=0.7, max_tokens=99, stop=["\n", "Q:"])
    config = GenerationConfig.from_pretrained(directory)
    assert (config.do_sample, config.temperature, config.max_new_tokens) == (True, 0.7, 99)
    assert (config.top_k, config.top_p) == (0, 1.0)
    assert (config.eos_token_id, config.pad_token_id) == ([258, 256], 259)
    assert config.stop_strings == ["\n", "Q:"]
    assert config.repetition_penalty in (None, 1.0)  # the run had none


def test_stop_strings_are_absent_where_there_are_none(written):
    content = json.loads((written() / "generation_config.json").read_text())
    assert "stop_strings" not in content


def test_the_prompt_is_beside_the_weights_as_the_model_saw_it(written):
    content = json.loads((written(stop=["é"]) / "prompt.json").read_text(encoding="utf-8"))
    assert content["system_prompt"] == "brief"
    assert content["user_prompt"] == "Q: {question}"
    assert content["reply_prefix"] == "A: "
    assert content["stop"] == ["é"]
    assert content["example"]["messages"] == [dict(m) for m in PROMPT.messages]
    assert content["example"]["prompt"].endswith("<|im_start|>assistant\nA: ")


def test_a_chat_with_the_published_directory_is_the_chat_that_was_trained(written):
    template = (
        "{% if brief %}!{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    directory = written({"chat_template": template, "chat_template_kwargs": {"brief": True}})
    messages = list(PROMPT.messages)[:-1]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "![system]brief[user]Q: 2 + 2"
    assert render_chat(messages, load_tokenizer(directory)) == rendered
