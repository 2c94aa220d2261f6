"""Where models come from: each source ends in a local Hugging Face checkpoint directory."""

from pathlib import Path

from kernels.cache_dir import default_cache_dir
from rollout.config import SMOLLM2_135M, TINY, ModelConfig


def resolve_model(config: ModelConfig, *, cache_dir: Path | None = None) -> Path:
    """The local directory of `config`'s model: config.json, *.safetensors, tokenizer, chat template.

    Args:
        config: its `dtype` plays no part: what is made here is bfloat16.
        cache_dir: holds what is made on this machine; by default `PACELINE_CACHE` or ~/.cache/paceline.

    Raises:
        ValueError: the model cannot be had; names the key and the cure.
    """
    # each source imports what it needs: huggingface_hub, torch and tokenizers take seconds together
    if config.path == SMOLLM2_135M:
        from rollout.models.sources.smollm2 import resolve_smollm2

        return resolve_smollm2(cache_dir or default_cache_dir())
    if config.path == TINY:
        from rollout.models.sources.tiny import resolve_tiny

        return resolve_tiny(cache_dir or default_cache_dir())
    if config.path.startswith("built-in:"):
        raise ValueError(
            f"model.path must be {SMOLLM2_135M}, {TINY}, a directory or a hub id, got {config.path}"
        )
    from rollout.models.sources.hf import resolve_hf

    return resolve_hf(config.path)
