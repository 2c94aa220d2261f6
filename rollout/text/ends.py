"""Tokens that end a completion, collected from all sources in a model directory.

The sources are generation_config.json (config.json if that names none), the tokenizer's end-of-sequence token, and
the token with which the chat template ends a turn of the assistant. A token of any source ends a completion. A
warning names each token that only the tokenizer or the template has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from rollout.models.declared_ends import CONFIG, GENERATION, declared_ends, default_ends

__all__ = ["Ends", "resolve_ends"]

_MARK = "PACELINE"
"""Content of a dummy reply, which no template writes by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Tokens that end a completion."""

    token_ids: tuple[int, ...]
    names: Mapping[int, str]
    """Text of each token, by its id."""
    end_of_turn: int | None
    """Token that the chat template writes after a reply; None if it writes none."""
    warnings: tuple[str, ...] = ()

    @property
    def end_of_reply(self) -> int | None:
        """Token that ends a reply to learn from; None if no token ends a completion."""
        if self.end_of_turn is not None:
            return self.end_of_turn
        return self.token_ids[0] if self.token_ids else None

    @property
    def description(self) -> str:
        """Description for people: "<|im_end|> (258), <|endoftext|> (256)"."""
        if not self.token_ids:
            return "no token, only sampling.max_tokens and sampling.stop"
        return _list(self.token_ids, self.names)


def resolve_ends(directory: Path, tokenizer: Any) -> Ends:
    """Collect the tokens that end a completion from all sources.

    Args:
        directory: directory of the model.
        tokenizer: tokenizer of the model, with the chat template in use.

    Raises:
        ValueError: a file is damaged, or names something else than token ids.
    """
    declared = declared_ends(directory)
    of_files = default_ends(declared)
    end_of_turn, turn_text = _end_of_turn(tokenizer)
    others = {
        "the tokenizer's end of sequence": tokenizer.eos_token_id,
        "the chat template's end of a turn": end_of_turn,
    }
    found = [*of_files, *(i for i in others.values() if i is not None)]
    token_ids = tuple(dict.fromkeys(found))
    listed = dict.fromkeys((*token_ids, *(i for ids in declared.values() for i in ids)))
    names = dict(zip(listed, _tokens(tokenizer, list(listed)), strict=True))
    warnings = _disagreements(declared, others, names)
    if turn_text:
        warnings.append(
            f"the chat template ends a turn with the text {turn_text!r}, which is not a token: only sampling.stop=[...] can "
            "end a completion there"
        )
    if not token_ids:
        warnings.append(
            f"no file of {directory} names a token that ends a completion, so each one runs to sampling.max_tokens"
        )
    return Ends(token_ids=token_ids, names=names, end_of_turn=end_of_turn, warnings=tuple(warnings))


def _disagreements(
    declared: Mapping[str, tuple[int, ...]],
    others: Mapping[str, int | None],
    names: Mapping[int, str],
) -> list[str]:
    of_files = default_ends(declared)
    source = GENERATION if declared.get(GENERATION) else CONFIG
    of_token: dict[int, list[str]] = {}
    for what, token_id in others.items():
        if token_id is not None and token_id not in of_files:
            of_token.setdefault(token_id, []).append(what)
    warnings = [
        f"{' and '.join(whats)} is {names[token_id]} ({token_id}), and {source} names "
        f"{_list(of_files, names) or 'none'}: each of them ends a completion"
        for token_id, whats in of_token.items()
    ]
    unused = [i for i in declared.get(CONFIG, ()) if i not in (*of_files, *others.values())]
    if unused:
        warnings.append(
            f"{CONFIG} ends a sequence at {_list(unused, names)}, but {GENERATION}, which takes precedence, does not: "
            f"{_list(unused, names)} does not end a completion"
        )
    return warnings


def _end_of_turn(tokenizer: Any) -> tuple[int | None, str]:
    """Return the token that the template writes after a reply, or else the text that it writes."""
    if not tokenizer.chat_template:
        return None, ""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError):
        return None, ""  # an error in the template is reported when a prompt is rendered
    tail = text.rpartition(_MARK)[2]
    added = tokenizer.added_tokens_decoder
    for token_id in tokenizer(tail, add_special_tokens=False)["input_ids"]:
        if token_id in added:
            return int(token_id), ""
        if tokenizer.decode([token_id]).strip():
            return None, tail.strip()
    return None, ""


def _tokens(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    return [str(token or "?") for token in tokenizer.convert_ids_to_tokens(list(token_ids))]


def _list(token_ids: Sequence[int], names: Mapping[int, str]) -> str:
    return ", ".join(f"{names[token_id]} ({token_id})" for token_id in token_ids)
