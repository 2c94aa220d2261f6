"""Rotary embedding of a config.json, in the formats of transformers 4 and 5.

transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 `rope_parameters`; existing files mix them. The
order of precedence is that of transformers 5: `rope_scaling` replaces `rope_parameters`, and a separate `rope_theta`
counts only if neither holds one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.rope import Llama3Scaling

__all__ = ["RopeSpec", "read_rope"]

_DEFAULT_THETA = 10000.0
_KEYS_OF_TYPE = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}
_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    theta: float
    llama3: Llama3Scaling | None = None
    linear_factor: float = 1.0


def read_rope(config: Mapping[str, Any], path: Path, *, max_positions: int) -> RopeSpec:
    """Return the rotary embedding of a config.json.

    Args:
        config: content of the file.
        path: path of the file, for errors.
        max_positions: `max_position_embeddings` of the model, the default context of llama3 scaling.

    Raises:
        ValueError: a kind of scaling or a key is not supported, or a value is out of range.
    """
    rope = _merged(config, path)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _KEYS_OF_TYPE:
        raise ValueError(
            f"RoPE scaling {kind!r} of {path} is not supported; supported are default, linear and llama3"
        )
    if kind == "llama3":
        rope.setdefault("original_max_position_embeddings", max_positions)
    _check_keys(rope, kind, path)
    theta = _positive(rope, "rope_theta", path)
    if kind == "linear":
        return RopeSpec(theta=theta, linear_factor=_positive(rope, "factor", path))
    if kind == "llama3":
        values = {key: _positive(rope, key, path) for key in _KEYS_OF_TYPE["llama3"]}
        context = int(values.pop("original_max_position_embeddings"))
        scaling = Llama3Scaling(**values, original_max_position_embeddings=context)
        if scaling.high_freq_factor <= scaling.low_freq_factor:
            raise ValueError(
                f"high_freq_factor of {path} must be > low_freq_factor ({scaling.low_freq_factor:g}), "
                f"got {scaling.high_freq_factor:g}"
            )
        return RopeSpec(theta=theta, llama3=scaling)
    return RopeSpec(theta=theta)


def _merged(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Merge the parameters of all formats into one set."""
    for key in ("rope_scaling", "rope_parameters"):
        if config.get(key) and not isinstance(config[key], Mapping):
            raise ValueError(f"{key} of {path} must be an object, got {config[key]!r}")
    rope = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", _DEFAULT_THETA))
    if config.get("partial_rotary_factor") is not None:
        rope.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    return rope


def _check_keys(rope: Mapping[str, Any], kind: str, path: Path) -> None:
    for key, value in rope.items():
        if key not in (*_KEYS, *_KEYS_OF_TYPE[kind]) and value is not None:
            raise ValueError(
                f"{key}={value!r} in the RoPE parameters of {path} is not supported with rope_type {kind!r}; "
                "remove it if it changes nothing"
            )
    factor = rope.get("partial_rotary_factor")
    if factor is not None and factor != 1:
        raise ValueError(
            f"partial_rotary_factor of {path} must be 1 (rotation of the whole head), got {factor!r}"
        )


def _positive(rope: Mapping[str, Any], key: str, path: Path) -> float:
    value = rope.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(
            f"{key} in the RoPE parameters of {path} must be a number > 0, got {value!r}"
        )
    return float(value)
