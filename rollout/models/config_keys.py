"""Keys of config.json that are supported, by architecture. Any other key with a value is an error.

An unknown key may change what the model computes (another mask, soft-capped logits, a scale). If it were ignored,
log-probabilities would be silently wrong.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollout.models.families.table import FAMILIES

__all__ = ["check_keys"]


_READ = {
    "architectures",
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "max_position_embeddings",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "eos_token_id",
}
_HARMLESS = {
    "attention_dropout",  # neither the trainer nor the engine has dropout
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "decoder_start_token_id",
    "dtype",
    "finetuning_task",
    "id2label",
    "initializer_range",
    "is_causal",  # `check_keys` checks its value
    "is_decoder",
    "is_llama_config",
    "label2id",
    "max_sequence_length",
    "max_window_layers",
    "model_max_length",
    "name_or_path",
    "neftune_noise_alpha",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "sep_token_id",
    "task_specific_params",
    "tokenizer_class",
    "tokenizer_model_max_length",
    "tokenizer_padding_side",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "use_cache",
    # defaults of generation in transformers 4; the engine uses its sampling parameters instead
    *("do_sample", "early_stopping", "length_penalty", "max_length", "max_new_tokens", "min_length"),
    *("num_beams", "num_beam_groups", "num_return_sequences", "repetition_penalty"),
    *("temperature", "top_k", "top_p", "typical_p", "diversity_penalty", "encoder_no_repeat_ngram_size"),
    *("no_repeat_ngram_size",),
}  # fmt: skip
_HARMLESS_PREFIXES = ("_", "unsloth")


def check_keys(config: Mapping[str, Any], architecture: str, path: Path) -> None:
    """Raise a ValueError if a key of config.json has a value and is not supported.

    Raises:
        ValueError: such a key exists; the message names it and its value.
    """
    if config.get("is_causal") is False:
        raise ValueError(f"is_causal of {path} must be true or absent, got false")
    known = _READ | _HARMLESS | set(FAMILIES[architecture].has_own_keys)
    for key, value in config.items():
        is_off = value is None or value is False or value in (0, "", [], {})
        if key not in known and not is_off and not key.startswith(_HARMLESS_PREFIXES):
            raise ValueError(
                f"{key}={value!r} of {path} is not supported for {architecture}, and may change what the model "
                "computes; remove the key if it changes nothing"
            )
