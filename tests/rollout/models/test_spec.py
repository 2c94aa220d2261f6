import json

import pytest

from kernels.rope import Llama3Scaling
from rollout.models.spec import SUPPORTED_ARCHITECTURES, read_spec
from tests.tiny_models import FAMILIES, LLAMA3_ROPE, save_tiny

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


@pytest.fixture
def spec_of(tmp_path):
    """`read_spec` of `LLAMA` with some keys changed; None takes a key out."""

    def read(*, generation=None, **changes):
        config = {key: value for key, value in (LLAMA | changes).items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(config))
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return read_spec(tmp_path)

    return read


def test_sizes_are_read_under_hugging_faces_names(spec_of):
    spec = spec_of()
    assert spec.architecture == "LlamaForCausalLM"
    assert (spec.vocab_size, spec.hidden_size, spec.intermediate_size) == (100, 64, 128)
    assert (spec.num_layers, spec.num_heads, spec.num_kv_heads) == (3, 4, 2)
    assert spec.max_positions == 512


def test_what_a_config_leaves_out_is_what_transformers_takes(spec_of):
    spec = spec_of(num_key_value_heads=None)
    assert spec.num_kv_heads == 4
    assert spec.head_dim == 16
    assert (spec.rms_norm_eps, spec.rope_theta) == (1e-6, 10000.0)
    assert not spec.tie_word_embeddings
    assert spec.eos_token_ids == ()


def test_a_given_head_width_beats_the_derived_one(spec_of):
    assert spec_of(head_dim=32).head_dim == 32
    assert spec_of(head_dim=None).head_dim == 16


@pytest.mark.parametrize(
    ("architecture", "flags", "expected"),
    [
        ("LlamaForCausalLM", {}, (False, False, False, False)),
        ("LlamaForCausalLM", {"attention_bias": True}, (True, True, False, False)),
        ("LlamaForCausalLM", {"mlp_bias": True}, (False, False, True, False)),
        ("MistralForCausalLM", {}, (False, False, False, False)),
        ("Qwen2ForCausalLM", {}, (True, False, False, False)),
        ("Qwen3ForCausalLM", {}, (False, False, False, True)),
        ("Qwen3ForCausalLM", {"attention_bias": True}, (True, True, False, True)),
    ],
)
def test_biases_and_head_norms_follow_the_architecture(spec_of, architecture, flags, expected):
    spec = spec_of(architectures=[architecture], **flags)
    assert (spec.qkv_bias, spec.o_bias, spec.mlp_bias, spec.qk_norm) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_that_transformers_wrote_is_read_back(family, tmp_path):
    _, model_class, departures = FAMILIES[family]
    spec = read_spec(save_tiny(tmp_path, family, num_hidden_layers=1))
    assert spec.architecture == model_class.__name__
    assert spec.head_dim == departures.get("head_dim", 16)
    assert spec.tie_word_embeddings == departures["tie_word_embeddings"]
    assert spec.max_positions == 512
    assert spec.rope_theta == 10000.0
    assert (spec.rope_llama3 is not None) == ("rope_parameters" in departures)


# --- RoPE


def test_llama3_scaling_is_read_from_transformers_5_and_4(spec_of):
    expected = Llama3Scaling(
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    )
    old = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    for rope in ({"rope_parameters": LLAMA3_ROPE}, {"rope_scaling": old, "rope_theta": 5e5}):
        spec = spec_of(**rope)
        assert spec.rope_llama3 == expected
        assert spec.rope_theta == rope.get("rope_theta", 10000.0)
        assert spec.rope_linear_factor == 1.0


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_theta": 1e6},
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 1e6},
    ],
)
def test_linear_scaling_is_read_under_all_its_spellings(spec_of, rope):
    spec = spec_of(**rope)
    assert (spec.rope_linear_factor, spec.rope_theta, spec.rope_llama3) == (4.0, 1e6, None)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": {}},
    ],
)
def test_a_plain_rope_keeps_its_base(spec_of, rope):
    spec = spec_of(**rope)
    assert (spec.rope_linear_factor, spec.rope_theta, spec.rope_llama3) == (1.0, 5e5, None)


# --- context


@pytest.mark.parametrize(
    ("architecture", "config", "expected"),
    [
        ("MistralForCausalLM", {"sliding_window": 128}, 128),
        ("MistralForCausalLM", {"sliding_window": 4096}, 512),
        ("MistralForCausalLM", {"max_position_embeddings": 8192}, 4096),  # its class has a window
        ("MistralForCausalLM", {"sliding_window": 128, "use_sliding_window": False}, 128),
        ("LlamaForCausalLM", {"max_position_embeddings": 8192}, 8192),
        ("Qwen2ForCausalLM", {"sliding_window": 128}, 512),
        ("Qwen3ForCausalLM", {"sliding_window": 128, "use_sliding_window": False}, 512),
        # layers from max_window_layers on attend within the window, and there are 3 layers
        ("Qwen2ForCausalLM", {"sliding_window": 128, "use_sliding_window": True}, 512),
        ("Qwen2ForCausalLM", {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 2}, 9),
        ("Qwen3ForCausalLM", {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 3}, 512),
    ],
)  # fmt: skip
def test_a_sliding_window_bounds_the_context(spec_of, architecture, config, expected):
    assert spec_of(architectures=[architecture], **config).max_positions == expected


# --- end of sequence


@pytest.mark.parametrize(
    ("in_config", "generation", "expected"),
    [
        (2, None, (2,)),
        ([2, 7], None, (2, 7)),
        (2, {"eos_token_id": [5, 6]}, (5, 6)),
        (2, {"eos_token_id": 5}, (5,)),
        (2, {"temperature": 0.7}, (2,)),
        (2, {"eos_token_id": None}, (2,)),
        (2, {"eos_token_id": []}, (2,)),
        ([], {"eos_token_id": []}, ()),
        (0, None, (0,)),
        (None, {}, ()),
    ],
)
def test_the_generation_config_has_the_last_word_on_the_end(
    spec_of, in_config, generation, expected
):
    assert spec_of(eos_token_id=in_config, generation=generation).eos_token_ids == expected


# --- what is refused


@pytest.mark.parametrize("architectures", [["GPT2LMHeadModel"], ["MixtralForCausalLM"]])
def test_an_unsupported_architecture_is_named_with_those_that_are(spec_of, architectures):
    with pytest.raises(ValueError, match=f"architecture {architectures[0]}") as error:
        spec_of(architectures=architectures)
    assert all(name in str(error.value) for name in SUPPORTED_ARCHITECTURES)


@pytest.mark.parametrize("architectures", [None, []])
def test_a_config_without_an_architecture_is_refused(spec_of, architectures):
    with pytest.raises(ValueError, match=r"architecture none .* is not supported"):
        spec_of(architectures=architectures)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
    ],
)
def test_an_unsupported_rope_scaling_is_named(spec_of, rope):
    with pytest.raises(ValueError, match=r"'yarn' .* supported are default, linear and llama3"):
        spec_of(**rope)


def test_an_activation_other_than_silu_is_named(spec_of):
    with pytest.raises(ValueError, match="hidden_act must be silu, got 'gelu'"):
        spec_of(hidden_act="gelu")


def test_a_directory_without_a_config_is_named(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path} has no config\.json"):
        read_spec(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_logit_softcapping", 50.0),
        ("quantization_config", {"quant_method": "fp8"}),
        ("logit_scale", 0.0625),
        ("is_causal", False),
        ("sliding_window", 128),  # a Llama has none
        ("partial_rotary_factor", 0.5),
        ("original_max_position_embeddings", 256),
    ],
)
def test_a_key_that_may_change_the_computation_is_refused_by_name(spec_of, key, value):
    with pytest.raises(ValueError, match=key):
        spec_of(**{key: value})


def test_keys_that_change_nothing_are_passed_over(spec_of):
    harmless = {
        "_name_or_path": "x",
        "torch_dtype": "bfloat16",
        "rope_interleaved": False,
        "use_mrope": False,
        "unsloth_version": "2026.1",
        "is_llama_config": True,
        "temperature": 0.6,
        "partial_rotary_factor": 1.0,
    }
    assert spec_of(**harmless) == spec_of()


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size"])
@pytest.mark.parametrize("value", [None, "64", 0, True, 64.0])
def test_a_size_that_is_missing_or_no_number_is_named(spec_of, key, value):
    with pytest.raises(ValueError, match=rf"{key} of .*config\.json must be a whole number"):
        spec_of(**{key: value})


def test_a_model_type_of_another_family_is_refused(spec_of):
    with pytest.raises(ValueError, match=r"model_type .* must be 'llama' .* got 'mistral'"):
        spec_of(model_type="mistral")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ['{"a": ', "[]", ""])
def test_a_file_that_is_no_json_object_is_named(spec_of, tmp_path, name, content):
    spec_of(generation={})
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        read_spec(tmp_path)
