"""Reads adapters in the format of the library peft: `adapter_config.json` and `adapter_model.safetensors`.

A key of the config is read only where its meaning is known, and any other that is set is refused: many of peft's options
change what a product B A means, or the base weights themselves (PiSSA, OLoRA, CorDA).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rollout.models.json_file import read_json
from rollout.models.tensor_files import is_finite, read_tensor_file

__all__ = ["ADAPTER_CONFIG", "ADAPTER_TENSORS", "read_adapter"]

ADAPTER_CONFIG, ADAPTER_TENSORS = "adapter_config.json", "adapter_model.safetensors"

_ALLOWED: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    # how A and B began; other ways change the base weights too
    "init_lora_weights": (True, False, "gaussian", None),
}
_FREE = {
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",  # which matrices have factors is seen from the tensors
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",  # a forward that is not trained has none
    "megatron_core",  # the name of a module, read with megatron_config
    "peft_version",
    "qalora_group_size",  # read with use_qalora
    "revision",
    "target_modules",
}


def read_adapter(directory: Path, *, rank: int, alpha: float) -> dict[str, torch.Tensor]:
    """Read the factors of an adapter by peft's names.

    Args:
        directory: `trainer.lora.path`.
        rank: rank that the adapter must have.
        alpha: alpha that the adapter must have.

    Raises:
        ValueError: there is no adapter; it is damaged, or of another rank, scale or kind; a factor is not finite.
    """
    for file in (ADAPTER_CONFIG, ADAPTER_TENSORS):
        if not (directory / file).is_file():
            raise ValueError(f"trainer.lora.path must hold {file}, got {str(directory)!r}")
    _check_settings(directory / ADAPTER_CONFIG, rank=rank, alpha=alpha)
    tensors = dict(read_tensor_file(directory / ADAPTER_TENSORS))
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ValueError(
                f"{name} of {directory / ADAPTER_TENSORS} holds NaN or infinite values; take an adapter whose factors "
                "are finite"
            )
    return tensors


def _check_settings(path: Path, *, rank: int, alpha: float) -> None:
    settings = read_json(path)
    allowed = {**_ALLOWED, "r": (rank,), "lora_alpha": (alpha,)}
    required = {key: settings.get(key) for key in ("peft_type", "r", "lora_alpha")}
    for key, value in {**required, **settings}.items():
        is_off = value is None or value is False or value in ("", [], {})
        is_right = _is_among(value, allowed[key]) if key in allowed else key in _FREE or is_off
        if not is_right:
            raise ValueError(
                f"trainer.lora.path must hold an adapter of trainer.lora.rank {rank} and alpha {alpha:g} without "
                f"extensions, got {key}={value!r} in {path}"
            )


def _is_among(value: Any, choices: tuple[Any, ...]) -> bool:
    """Equality that tells True from 1."""
    return any(value == c and isinstance(value, bool) == isinstance(c, bool) for c in choices)
