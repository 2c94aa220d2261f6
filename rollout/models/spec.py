"""What a Hugging Face config.json says of a decoder, in our words."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.rope import Llama3Scaling

__all__ = ["SUPPORTED_ARCHITECTURES", "DecoderSpec", "read_spec"]

SUPPORTED_ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """A decoder-only transformer: RMSNorm, RoPE, grouped-query attention, SwiGLU."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_llama3: Llama3Scaling | None
    rope_linear_factor: float
    max_positions: int  # of the context; a sliding window, if any, is not longer
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    eos_token_ids: tuple[int, ...]


def read_spec(directory: Path) -> DecoderSpec:
    """Read `config.json` (and the end-of-sequence ids of `generation_config.json`).

    Raises:
        ValueError: no config.json, an unsupported architecture, activation or RoPE scaling.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(
            f"model directory {directory} has no config.json; give a Hugging Face directory"
        )
    config = json.loads(path.read_text())
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise ValueError(
            f"architecture {architecture} of {path} is not supported; one of {', '.join(SUPPORTED_ARCHITECTURES)} is"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act must be silu, got {config['hidden_act']!r} in {path}")
    rope = _rope(config, path)
    is_qwen2 = architecture == "Qwen2ForCausalLM"
    attention_bias = bool(config.get("attention_bias", False))
    return DecoderSpec(
        architecture=architecture,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta", 10000.0)),
        rope_llama3=_llama3(rope),
        rope_linear_factor=float(rope["factor"]) if _rope_type(rope) == "linear" else 1.0,
        max_positions=_max_positions(config),
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        qkv_bias=is_qwen2 or attention_bias,
        o_bias=attention_bias and not is_qwen2,
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=architecture == "Qwen3ForCausalLM",
        eos_token_ids=_eos_token_ids(config, directory),
    )


def _rope(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    # transformers 5 writes rope_parameters; 4 wrote rope_theta and rope_scaling
    rope = config.get("rope_parameters") or {
        "rope_theta": config.get("rope_theta", 10000.0),
        **(config.get("rope_scaling") or {}),
    }
    if _rope_type(rope) not in ("default", "linear", "llama3"):
        raise ValueError(
            f"RoPE scaling {_rope_type(rope)!r} of {path} is not supported; default, linear and llama3 are"
        )
    return rope


def _rope_type(rope: Mapping[str, Any]) -> str:
    return rope.get("rope_type") or rope.get("type") or "default"


def _llama3(rope: Mapping[str, Any]) -> Llama3Scaling | None:
    if _rope_type(rope) != "llama3":
        return None
    return Llama3Scaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_position_embeddings=rope["original_max_position_embeddings"],
    )


def _max_positions(config: Mapping[str, Any]) -> int:
    """Within its sliding window a model attends to everything, so the window bounds our context."""
    positions = config.get("max_position_embeddings", 2048)
    window = config.get("sliding_window")
    uses_window = window is not None and config.get("use_sliding_window", True)
    return min(positions, window) if uses_window else positions


def _eos_token_ids(config: Mapping[str, Any], directory: Path) -> tuple[int, ...]:
    path = directory / "generation_config.json"
    generation = json.loads(path.read_text()) if path.is_file() else {}
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (eos,)
