"""A model and its tokenizer from one directory: damaged files by their names, and what the two must agree on."""

import json
import logging
import shutil

import pytest
import torch

from rollout.config import ModelConfig
from rollout.load import load_model
from rollout.models.sources.tiny import make_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    make_tiny_model(directory)
    return directory


@pytest.fixture
def model(tiny, tmp_path):
    """A copy, to be changed."""
    return shutil.copytree(tiny, tmp_path / "model")


def load(directory, **options):
    return load_model(directory, dtype=torch.float32, **options)


def change(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"],
)  # fmt: skip
@pytest.mark.parametrize("num_lost", [1, 20, 10**9])
def test_a_truncated_file_is_named(model, name, num_lost):
    path = model / name
    path.write_bytes(path.read_bytes().rstrip()[:-num_lost])
    with pytest.raises(ValueError, match=str(path)):
        load(model)


@pytest.mark.parametrize(
    "content", ["{}", '{"model": {"type": "Nonsense"}}', '{"added_tokens": [], "model": {"type": "BPE"}}']
)  # fmt: skip
def test_json_that_is_no_tokenizer_is_named_with_its_directory(model, content):
    (model / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=f"the tokenizer of {model} cannot be loaded"):
        load(model)


def test_a_directory_without_a_tokenizer_is_named(model):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    with pytest.raises(ValueError, match=f"{model}.*tokenizer"):
        load(model)


def test_a_token_beyond_the_embedding_is_found_at_load_with_both_numbers(model):
    path = model / "tokenizer.json"
    added = json.loads(path.read_text())["added_tokens"]
    change(path, added_tokens=[*added, added[-1] | {"id": 260, "content": "<extra>"}])
    with pytest.raises(ValueError, match=r"'<extra>' with id 260, .* has 260 rows"):
        load(model)


def test_an_embedding_with_rows_to_spare_is_right(model):
    path = model / "tokenizer.json"
    change(path, added_tokens=json.loads(path.read_text())["added_tokens"][:-1])
    change(model / "tokenizer_config.json", pad_token="<|im_end|>")
    load(model)


def test_the_decoder_ends_where_all_sources_say_and_a_disagreement_is_logged(model, caplog):
    change(model / "config.json", eos_token_id=256)
    (model / "generation_config.json").unlink()
    with caplog.at_level(logging.WARNING):
        loaded = load(model)
    assert loaded.decoder.spec.eos_token_ids == loaded.ends.token_ids == (256, 258)
    assert "each of them ends a completion" in caplog.text


def test_nothing_is_logged_of_a_model_that_is_as_it_should_be(tiny, caplog):
    with caplog.at_level(logging.WARNING):
        loaded = load(tiny)
    assert loaded.ends.description == "<|im_end|> (258)"
    assert not caplog.records


def test_the_configs_template_says_where_a_turn_ends(tiny):
    template = "{% for m in messages %}{{ m.content }}<|im_start|>{% endfor %}"
    model = ModelConfig(path=str(tiny), chat_template=template)
    assert load(tiny, model=model).ends.token_ids == (258, 257)
