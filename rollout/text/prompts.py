"""Forms of a prompt, and their conversion to token ids."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

from rollout.text.chat import render_chat

__all__ = ["Prompt", "as_prompts", "encode_prompt", "encode_prompts"]

Prompt = Sequence[int] | str | Sequence[Mapping[str, Any]]
"""Token ids, text, or chat messages. If the last message is the assistant's, it is continued, not answered."""

_FORMS = (
    'a text ("12 + 35 ="), token ids ([1, 2, 3], also as a tensor or an array), or chat messages '
    '([{"role": "user", "content": "..."}])'
)


def as_prompts(prompts: Any) -> list[Prompt]:
    """Return a list of prompts; a single prompt, in any form, becomes a list of one.

    Raises:
        ValueError: a value cannot be a prompt; the message lists the forms that can.
    """
    given = _plain(prompts)
    if isinstance(given, str | Mapping):
        return [_prompt(given)]
    if isinstance(given, Iterable) and not isinstance(given, bytes | set | frozenset):
        items = [_plain(item) for item in given]
        if items and all(_is_token(item) for item in items):
            return [_prompt(items)]
        if items and all(isinstance(item, Mapping) and "role" in item for item in items):
            return [_prompt(items)]
        return [_prompt(item) for item in items]
    raise ValueError(f"prompts must be a prompt or a list of them, each {_FORMS}; got {given!r}")


def encode_prompt(prompt: Prompt, tokenizer: Any) -> list[int]:
    """Return the token ids of a prompt; chat messages go through the model's chat template.

    Raises:
        ValueError: the prompt is empty, or the model's template cannot render its chat messages.
    """
    if not prompt:
        raise ValueError("prompt must not be empty")
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if isinstance(prompt[0], Mapping):
        text = render_chat(prompt, tokenizer)  # pyrefly: ignore
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return [int(token) for token in prompt]  # pyrefly: ignore


def encode_prompts(prompts: Sequence[Prompt], tokenizer: Any) -> list[list[int]]:
    """Return the token ids of many prompts; chat messages are rendered first, then tokenized together.

    Raises:
        ValueError: as for `encode_prompt`.
    """
    if not all(prompts):
        raise ValueError("prompt must not be empty")
    if not prompts or not all(isinstance(prompt[0], Mapping) for prompt in prompts):
        return [encode_prompt(prompt, tokenizer) for prompt in prompts]
    texts = [render_chat(prompt, tokenizer) for prompt in prompts]  # pyrefly: ignore
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _prompt(item: Any) -> Prompt:
    """Return one prompt, its token ids as a list of Python ints."""
    if isinstance(item, str):
        return item
    if isinstance(item, Mapping):
        if "role" in item:
            return [item]
        cure = "; pass its input_ids" if "input_ids" in item else ""
        raise ValueError(
            f"a prompt must be {_FORMS}, got a mapping with the keys {list(item)}{cure}"
        )
    if isinstance(item, Iterable) and not isinstance(item, bytes | set | frozenset):
        tokens = [_plain(token) for token in item]
        if all(_is_token(token) for token in tokens):
            return [int(token) for token in tokens]
        if all(isinstance(token, Mapping) and "role" in token for token in tokens):
            return tokens
    raise ValueError(f"a prompt must be {_FORMS}; got {item!r}")


def _plain(value: Any) -> Any:
    """Return lists and numbers for tensors and arrays, and any other value unchanged."""
    return value.tolist() if hasattr(value, "tolist") else value


def _is_token(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
