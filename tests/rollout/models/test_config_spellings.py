"""Spellings of a config.json, generated; the oracle is what transformers' own config and rotary classes make of them."""

import importlib
import json
import logging
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from kernels.rope import rope_table
from rollout.models.checkpoint import load_decoder
from rollout.models.families.table import FAMILIES
from rollout.models.spec import read_spec
from tests.rollout.models.test_decoder import hidden_states, load_hf, make_sequences
from tests.tiny_models import save_tiny

QUICK = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
SIZES = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
THETAS = st.sampled_from([100.0, 5e5, 10000])


@st.composite
def rope_dicts(draw):
    """Parameters of one kind, under one of the ways to name the kind, with or without a base of their own."""
    kind = draw(st.sampled_from(["default", "linear", "llama3", "yarn", "dynamic"]))
    rope = {"linear": {"factor": 4.0}, "yarn": {"factor": 4.0}, "dynamic": {"factor": 2.0}}.get(
        kind, {}
    )
    if kind == "llama3":
        rope = LLAMA3 | draw(st.sampled_from([{}, {"original_max_position_embeddings": 64}]))
    names = draw(st.sampled_from([("rope_type",), ("type",), ("rope_type", "type"), ()]))
    rope = {**rope, **dict.fromkeys(names, kind)}
    if draw(st.booleans()):
        rope["rope_theta"] = draw(THETAS)
    return rope


@st.composite
def rope_configs(draw):
    config = dict(SIZES)
    for key in ("rope_parameters", "rope_scaling"):
        if draw(st.booleans()):
            config[key] = draw(st.none() | st.just({}) | rope_dicts())
    if draw(st.booleans()):
        config["rope_theta"] = draw(THETAS)
    return config


def cosines_of_transformers(config):
    """[positions, D/2], or None where transformers refuses the config or rotates in a way that we do not implement."""
    logging.disable(logging.WARNING)
    try:
        hf = LlamaConfig.from_dict(json.loads(json.dumps(config)))
    except (KeyError, TypeError, ValueError):
        return None
    finally:
        logging.disable(logging.NOTSET)
    if hf.rope_parameters["rope_type"] not in ("default", "linear", "llama3"):
        return None
    positions = torch.arange(128)[None]
    cosines, _ = LlamaRotaryEmbedding(hf)(torch.zeros(1, dtype=torch.float32), positions)
    return cosines[0, :, :8]


@QUICK
@given(config=rope_configs())
def test_every_spelling_of_rope_turns_as_in_transformers_or_is_refused(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = cosines_of_transformers(config)
    try:
        spec = read_spec(tmp_path)
    except ValueError:
        unnamed = [r for r in (config.get("rope_scaling"), config.get("rope_parameters")) if r]
        # parameters without their kind are of the default kind, which transformers reads past: refusing them is right, too
        assert expected is None or not {"rope_type", "type"} & unnamed[0].keys()
        return
    assert expected is not None, "transformers refuses it, or turns otherwise"
    table = rope_table(
        spec.max_positions,
        spec.head_dim,
        theta=spec.rope_theta,
        scaling=spec.rope_llama3,
        linear_factor=spec.rope_linear_factor,
    )
    torch.testing.assert_close(table[:, :8], expected, rtol=0, atol=2e-5)


def config_class(architecture):
    name = FAMILIES[architecture].model_type
    module = importlib.import_module(f"transformers.models.{name}.configuration_{name}")
    return getattr(module, architecture.replace("ForCausalLM", "Config"))


@QUICK
@given(
    architecture=st.sampled_from(sorted(FAMILIES)),
    optional=st.fixed_dictionaries(
        {},
        optional={
            "num_key_value_heads": st.sampled_from([1, 2, 4]),
            "head_dim": st.sampled_from([16, 32]),
            "rms_norm_eps": st.sampled_from([1e-5, 1e-6]),
            "max_position_embeddings": st.sampled_from([128, 8192]),
            "tie_word_embeddings": st.booleans(),
        },
    ),
)
def test_what_a_config_leaves_out_is_what_the_class_of_its_family_takes(
    tmp_path, architecture, optional
):
    config = SIZES | {"architectures": [architecture], "num_attention_heads": 32} | optional
    if "max_position_embeddings" not in optional:
        del config["max_position_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec, hf = read_spec(tmp_path), config_class(architecture).from_dict(dict(config))
    assert spec.num_kv_heads == hf.num_key_value_heads
    derived = hf.hidden_size // hf.num_attention_heads
    assert spec.head_dim == (getattr(hf, "head_dim", None) or derived)
    assert spec.rms_norm_eps == hf.rms_norm_eps
    assert spec.tie_word_embeddings == hf.tie_word_embeddings
    window = getattr(hf, "sliding_window", None) or hf.max_position_embeddings
    assert spec.max_positions == min(window, hf.max_position_embeddings)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("spelled"), "llama", vocab_size=260)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 500000.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}, "rope_theta": 500000.0},
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_parameters": None, "rope_scaling": LLAMA3 | {"rope_type": "llama3", "original_max_position_embeddings": 32}},
        {"rope_theta": 500.0},
        {},
    ],
)  # fmt: skip
def test_logits_are_those_of_transformers_in_mixed_spellings(llama, tmp_path, rope):
    directory = shutil.copytree(llama, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    del config["rope_parameters"]
    (directory / "config.json").write_text(json.dumps(config | rope))
    (tokens,) = make_sequences([60])
    decoder = load_decoder(directory, dtype=torch.float32)
    with torch.no_grad():
        truth = load_hf(directory)(tokens[None]).logits[0]
        got = decoder.logits(hidden_states(decoder, [tokens]))
    torch.testing.assert_close(got, truth, rtol=0, atol=1e-4)


def test_yarn_beside_default_parameters_is_refused(llama, tmp_path):
    directory = shutil.copytree(llama, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default"}
    config["rope_scaling"] = {"rope_type": "yarn", "factor": 4.0}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'yarn'"):
        read_spec(directory)
