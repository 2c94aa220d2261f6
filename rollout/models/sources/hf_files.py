"""Writer of the files in a Hugging Face checkpoint directory, without importing transformers."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer


def write_checkpoint(
    directory: Path, *, config: dict[str, Any], weights: dict[str, torch.Tensor]
) -> None:
    """Write `config.json`, `generation_config.json` and `model.safetensors`; `weights` has Hugging Face's names."""
    token_ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", token_ids)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def write_tokenizer(
    directory: Path,
    *,
    tokenizer: Tokenizer,
    chat_template: str,
    special_tokens: dict[str, str],
    max_length: int,
) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`.

    Args:
        directory: existing directory to write to.
        tokenizer: tokenizer with its special tokens added.
        chat_template: Jinja text that reads `messages` and `add_generation_prompt`.
        special_tokens: special tokens by role, for example `{"eos_token": "<|im_end|>"}`.
        max_length: number of tokens above which transformers warns.
    """
    tokenizer.save(str(directory / "tokenizer.json"))
    tokenizer_config = {
        # this class takes tokenizer.json unchanged; GPT2Tokenizer and similar ones rebuild the pre-tokenizer
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        **special_tokens,
    }
    _write_json(directory / "tokenizer_config.json", tokenizer_config)
    (directory / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
