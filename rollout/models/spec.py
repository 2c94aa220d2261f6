"""Reader of a decoder's architecture in a Hugging Face config.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollout.models.config_keys import check_keys
from rollout.models.declared_ends import declared_ends, default_ends
from rollout.models.decoder_spec import DecoderSpec
from rollout.models.families.family import Family
from rollout.models.families.table import FAMILIES
from rollout.models.json_file import read_json
from rollout.models.rope_config import read_rope

__all__ = ["SUPPORTED_ARCHITECTURES", "read_spec"]

SUPPORTED_ARCHITECTURES = tuple(FAMILIES)


def read_spec(directory: Path) -> DecoderSpec:
    """Read `config.json`, and the end-of-sequence ids of `generation_config.json`, as transformers does.

    Raises:
        ValueError: config.json is missing; an architecture, activation, RoPE scaling or key is not supported; a value
            is out of range.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(
            f"model directory {directory} has no config.json; give a Hugging Face directory"
        )
    config = read_json(path)
    name = _architecture(config, path)
    family = FAMILIES[name]
    check_keys(config, name, path)
    positions = _count(config, "max_position_embeddings", path, default=family.max_positions)
    rope = read_rope(config, path, max_positions=positions)
    num_heads = _count(config, "num_attention_heads", path)
    hidden_size = _count(config, "hidden_size", path)
    attention_bias = bool(config.get("attention_bias", False))
    return DecoderSpec(
        architecture=name,
        vocab_size=_count(config, "vocab_size", path),
        hidden_size=hidden_size,
        intermediate_size=_count(config, "intermediate_size", path),
        num_layers=_count(config, "num_hidden_layers", path),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(config, family, path, num_heads=num_heads),
        head_dim=_head_dim(config, family, path, derived=hidden_size // num_heads),
        rms_norm_eps=_epsilon(config, path),
        rope_theta=rope.theta,
        rope_llama3=rope.llama3,
        rope_linear_factor=rope.linear_factor,
        max_positions=_within_window(config, family, path, positions=positions),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family.has_qkv_bias or attention_bias,
        o_bias=attention_bias and not family.has_qkv_bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=family.has_qk_norm,
        eos_token_ids=default_ends(declared_ends(directory)),
    )


def _architecture(config: Mapping[str, Any], path: Path) -> str:
    name = (config.get("architectures") or ["none"])[0]
    if name not in FAMILIES:
        raise ValueError(
            f"architecture {name} of {path} is not supported; supported are {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    expected = FAMILIES[name].model_type
    if config.get("model_type", expected) != expected:
        raise ValueError(
            f"model_type of {path} must be {expected!r} because its architecture is {name}, got {config['model_type']!r}"
        )
    if config.get("hidden_act", "silu") not in ("silu", "swish"):  # two names of the same function
        raise ValueError(f"hidden_act must be silu, got {config['hidden_act']!r} in {path}")
    return name


def _count(config: Mapping[str, Any], key: str, path: Path, *, default: int | None = None) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} of {path} must be a whole number > 0, got {value!r}")
    return value


def _num_kv_heads(config: Mapping[str, Any], family: Family, path: Path, *, num_heads: int) -> int:
    if "num_key_value_heads" not in config and family.num_kv_heads is not None:
        count = family.num_kv_heads
    else:
        count = config.get("num_key_value_heads")
        if count is None:
            return num_heads
    count = _count({"num_key_value_heads": count}, "num_key_value_heads", path)
    if num_heads % count:
        raise ValueError(
            f"num_key_value_heads of {path} must divide num_attention_heads ({num_heads}), got {count}"
        )
    return count


def _head_dim(config: Mapping[str, Any], family: Family, path: Path, *, derived: int) -> int:
    width = config.get("head_dim", family.head_dim)
    width = derived if width is None else _count({"head_dim": width}, "head_dim", path)
    if width % 2:
        raise ValueError(f"the width of a head must be even for RoPE, got {width} from {path}")
    return width


def _epsilon(config: Mapping[str, Any], path: Path) -> float:
    value = config.get("rms_norm_eps", 1e-6)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ValueError(f"rms_norm_eps of {path} must be a number >= 0, got {value!r}")
    return float(value)


def _within_window(config: Mapping[str, Any], family: Family, path: Path, *, positions: int) -> int:
    """Return the maximum context. Within its sliding window a model attends to all tokens, so the window limits
    the context."""
    if "sliding_window" not in family.has_own_keys:
        return positions
    window = config.get("sliding_window", 4096)
    if "use_sliding_window" in family.has_own_keys:
        window = window if config.get("use_sliding_window", False) else None
        if not _has_window(config, path, has_length=window is not None):
            return positions
    if window is None:
        return positions
    return min(positions, _count({"sliding_window": window}, "sliding_window", path))


def _has_window(config: Mapping[str, Any], path: Path, *, has_length: bool) -> bool:
    """Return whether some layer of a Qwen attends only within a window."""
    types = config.get("layer_types")
    num_layers = _count(config, "num_hidden_layers", path)
    if types is None:
        return has_length and config.get("max_window_layers", 28) < num_layers
    if len(types) != num_layers or not set(types) <= {"full_attention", "sliding_attention"}:
        raise ValueError(
            f"layer_types of {path} must name full_attention or sliding_attention for each of {num_layers} layers, "
            f"got {types!r}"
        )
    if "sliding_attention" in types and not has_length:
        raise ValueError(
            f"layer_types of {path} has sliding_attention, so use_sliding_window must be true and sliding_window a "
            f"number, got {config.get('use_sliding_window', False)!r} and {config.get('sliding_window')!r}"
        )
    return "sliding_attention" in types
