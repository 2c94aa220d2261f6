"""Random tiny checkpoints of every family, written by transformers: the ground truth our loader reads."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rollout.models.sources.tiny import VOCAB_SIZE, write_byte_tokenizer

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# head_dim differs from hidden / heads for qwen3 and mistral: code that derives it must fail
FAMILIES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "llama_untied_bias_rope3": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "tie_word_embeddings": False,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": LLAMA3_ROPE,
        },
    ),
    "mistral": (
        MistralConfig,
        MistralForCausalLM,
        {"tie_word_embeddings": False, "head_dim": 32, "sliding_window": None},
    ),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"tie_word_embeddings": False, "head_dim": 32}),
}


def save_tiny(
    directory: Path,
    family: str,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Write a two-layer model of `family` (a key of `FAMILIES`) and the byte tokenizer to `directory`.

    Every parameter is random, biases and norm weights too, so that one left out changes the logits.
    """
    config_class, model_class, departures = FAMILIES[family]
    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": VOCAB_SIZE - 4,
        "eos_token_id": VOCAB_SIZE - 2,
        "pad_token_id": VOCAB_SIZE - 1,
    }
    model = model_class(config_class(**sizes | departures | overrides))
    _randomise(model, seed=seed)
    model.to(dtype).save_pretrained(directory)
    write_byte_tokenizer(directory)
    return directory


@torch.no_grad()
def _randomise(model: torch.nn.Module, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.copy_(1 + 0.2 * noise)
        elif parameter.ndim == 1 or "embed" in name:
            parameter.copy_(0.1 * noise)
        else:
            parameter.copy_(noise * parameter.shape[1] ** -0.5)
