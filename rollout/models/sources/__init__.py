"""Sources of models: each provides a local Hugging Face checkpoint directory."""

from pathlib import Path

from kernels.cache_dir import default_cache_dir
from rollout.config import SMOLLM2_135M, TINY, ModelConfig


def resolve_model(
    config: ModelConfig, *, cache_dir: Path | None = None, key: str = "model.path"
) -> Path:
    """Return the local directory of `config`'s model: config.json, *.safetensors, tokenizer, chat template.

    Args:
        config: config of the model; its `dtype` is ignored, and converted models are bfloat16.
        cache_dir: directory for converted models; None: `PACELINE_CACHE` or ~/.cache/paceline.
        key: config key that gave the path, for messages.

    Raises:
        ValueError: the model is not available; the message names the key and the cure.
    """
    # each source imports only what it needs: huggingface_hub, torch and tokenizers together take seconds
    if config.path == SMOLLM2_135M:
        from rollout.models.sources.smollm2 import resolve_smollm2

        return resolve_smollm2(cache_dir or default_cache_dir())
    if config.path == TINY:
        from rollout.models.sources.tiny import resolve_tiny

        return resolve_tiny(cache_dir or default_cache_dir())
    if config.path.startswith("built-in:"):
        raise ValueError(
            f"{key} must be {SMOLLM2_135M}, {TINY}, a directory or a hub id, got {config.path}"
        )
    from rollout.models.sources.hf import resolve_hf

    return resolve_hf(config.path, key=key)
