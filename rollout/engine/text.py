"""Between token ids and text: what a prompt may be, where a completion's text ends."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Prompt",
    "encode_prompt",
    "encode_prompts",
    "ends_with_stop",
    "load_tokenizer",
    "text_of",
]

Prompt = Sequence[int] | str | Sequence[Mapping[str, str]]
"""Token ids, text, or chat messages; a last message of the assistant's is continued, not answered."""

_GENERIC_CLASSES = (
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
)  # its name before and since transformers 5

_MAX_TOKENS_PER_CHARACTER = 4  # a byte-level token holds at least one byte of UTF-8


def load_tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer beside a model's weights."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # takes a second to import

    if _tokenizer_class(directory) in _GENERIC_CLASSES:
        # AutoTokenizer would give the same, after importing 3 s of model code to find out
        return PreTrainedTokenizerFast.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    if tokenizer is None:
        raise ValueError(f"model directory {directory} has no tokenizer; add tokenizer.json")
    return tokenizer


def _tokenizer_class(directory: Path) -> str:
    """As its config names it; empty where there is none, or no tokenizer.json to go with it."""
    config = directory / "tokenizer_config.json"
    if not (config.is_file() and (directory / "tokenizer.json").is_file()):
        return ""
    return json.loads(config.read_text(encoding="utf-8")).get("tokenizer_class", "")


def encode_prompt(prompt: Prompt, tokenizer: Any) -> list[int]:
    """Token ids of a prompt; chat messages go through the model's chat template.

    Raises:
        ValueError: an empty prompt, or chat messages for a model without a template.
    """
    if not prompt:
        raise ValueError("prompt must not be empty")
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if isinstance(prompt[0], Mapping):
        if not tokenizer.chat_template:
            raise ValueError(
                "chat messages need a chat template, and this tokenizer has none; pass text"
            )
        return list(
            tokenizer.apply_chat_template(
                list(prompt), **_ending(prompt), tokenize=True, return_dict=False
            )
        )
    return [int(token) for token in prompt]  # pyrefly: ignore


def ends_with_stop(output_ids: Sequence[int], stop: Sequence[str], tokenizer: Any) -> bool:
    """Whether the last token completed a stop string. Looks at the end of the text alone."""
    window = _MAX_TOKENS_PER_CHARACTER * max(len(s) for s in stop) + 1
    tail = tokenizer.decode(output_ids[-window:], skip_special_tokens=True)
    return any(s in tail for s in stop)


def text_of(output_ids: Sequence[int], stop: Sequence[str], tokenizer: Any) -> str:
    """Text without special tokens, up to the first stop string."""
    text = tokenizer.decode(list(output_ids), skip_special_tokens=True)
    ends = [text.index(s) for s in stop if s in text]
    return text[: min(ends)] if ends else text


def encode_prompts(prompts: Sequence[Prompt], tokenizer: Any) -> list[list[int]]:
    """Token ids of many prompts; chat messages are rendered first, then tokenised together.

    Raises:
        ValueError: as `encode_prompt`.
    """
    if not all(prompts):
        raise ValueError("prompt must not be empty")
    if not prompts or not isinstance(prompts[0][0], Mapping):
        return [encode_prompt(prompt, tokenizer) for prompt in prompts]
    encode_prompt(prompts[0], tokenizer)  # says what is wrong with prompts of this kind
    texts = [
        tokenizer.apply_chat_template(list(prompt), **_ending(prompt), tokenize=False)
        for prompt in prompts
    ]
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _ending(messages: Any) -> dict[str, bool]:
    """How the chat template ends: by opening the assistant's reply, or inside the reply that was begun."""
    is_begun = messages[-1]["role"] == "assistant"
    return {"continue_final_message": True} if is_begun else {"add_generation_prompt": True}
