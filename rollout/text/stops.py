"""Stop strings: the test whether a completion has reached one, and the text before it.

A stop string that contains a special token is searched for in text that shows special tokens. Other stop strings are
searched for in the text of the completion, which leaves special tokens out.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["ends_with_stop", "text_of"]

_MAX_TOKENS_PER_CHARACTER = 4  # a byte-level token holds at least one byte of UTF-8


def ends_with_stop(output_ids: Sequence[int], stop: Sequence[str], tokenizer: Any) -> bool:
    """Return whether the last token completed a stop string. Only the end of the text is searched."""
    window = _MAX_TOKENS_PER_CHARACTER * max(len(s) for s in stop) + 1
    tail = output_ids[-window:]
    shown, hidden = _by_kind(stop, tokenizer)
    return _holds(tail, shown, tokenizer, skips=False) or _holds(
        tail, hidden, tokenizer, skips=True
    )


def text_of(output_ids: Sequence[int], stop: Sequence[str], tokenizer: Any) -> str:
    """Return the text without special tokens, up to the first stop string."""
    shown, hidden = _by_kind(stop, tokenizer)
    text = tokenizer.decode(list(output_ids), skip_special_tokens=True)
    if shown:
        full = _until(tokenizer.decode(list(output_ids), skip_special_tokens=False), shown)
        text = re.sub("|".join(map(re.escape, special_tokens(tokenizer))), "", full)
    return _until(text, hidden)


@functools.lru_cache(maxsize=8)
def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Return the special tokens, which a completion's text leaves out, longest first."""
    added = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    return tuple(sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True))


def _by_kind(stop: Sequence[str], tokenizer: Any) -> tuple[list[str], list[str]]:
    """Return the stop strings that contain a special token, and those that do not."""
    tokens = special_tokens(tokenizer)
    shown = [s for s in stop if any(token in s for token in tokens)]
    return shown, [s for s in stop if s not in shown]


def _holds(ids: Sequence[int], stop: Sequence[str], tokenizer: Any, *, skips: bool) -> bool:
    if not stop:
        return False
    text = tokenizer.decode(ids, skip_special_tokens=skips)
    return any(s in text for s in stop)


def _until(text: str, stop: Sequence[str]) -> str:
    return text[: min((text.index(s) for s in stop if s in text), default=len(text))]
