"""Choice of a chat template: the tokenizer's own, a named one, a file, or Jinja text.

`model.chat_template_kwargs` become default values in the template's own text. A published checkpoint therefore has
one chat_template.jinja that renders prompts as in training, in whatever server.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["CHATML", "PLAIN", "set_chat_template"]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}"
)
"""Template for base models: only the text of the messages."""

_BY_NAME = {"plain": PLAIN, "chatml": CHATML}
_GIVEN = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
_CHOICES = (
    "model.chat_template=plain (the text of the messages, for base models), model.chat_template=chatml, "
    "or the path of a Jinja file"
)


def set_chat_template(tokenizer: Any, choice: str, arguments: Mapping[str, Any]) -> None:
    """Give a tokenizer the chat template that the config asks for; an empty choice keeps the tokenizer's own.

    Args:
        tokenizer: tokenizer to change in place.
        choice: `model.chat_template`.
        arguments: `model.chat_template_kwargs`.

    Raises:
        ValueError: there is no such template, or it does not read an argument.
    """
    template = _template(tokenizer, choice)
    if arguments:
        template = _with_arguments(template, arguments)
    if template:
        tokenizer.chat_template = template


def _template(tokenizer: Any, choice: str) -> str:
    own = tokenizer.chat_template or ""
    named = own if isinstance(own, dict) else {"default": own}
    if not choice:
        return named.get("default", "")
    if "{{" in choice or "{%" in choice:
        return choice
    if choice == "plain" and _starts_with_bos(tokenizer):
        return "{{ bos_token }}" + PLAIN  # the tokenizer begins every text with it, too
    if choice in _BY_NAME:
        return _BY_NAME[choice]
    if named.get(choice):
        return named[choice]
    path = Path(choice).expanduser()
    if path.is_file():
        return _read(path)
    names = sorted({*_BY_NAME, *(name for name in named if named[name])})
    raise ValueError(
        f"model.chat_template must be the path of a Jinja file, Jinja text, or one of {', '.join(names)}, got {choice!r}, "
        "and there is no such file"
    )


def _read(path: Path) -> str:
    try:
        template = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"model.chat_template must be a text in UTF-8, got {str(path)!r}: {error}"
        ) from error
    if not template.strip():
        raise ValueError(
            f"model.chat_template must be a Jinja file, got {str(path)!r}, which is empty"
        )
    return template


def _starts_with_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and (
        list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]
    )


def _with_arguments(template: str, arguments: Mapping[str, Any]) -> str:
    """Return the template with a default for each argument; a caller that renders it may still pass another value."""
    if not template:
        raise ValueError(
            f"model.chat_template_kwargs needs a chat template, and the tokenizer has none; set {_CHOICES}"
        )
    for name in arguments:
        if name in _GIVEN or not re.search(rf"\b{re.escape(name)}\b", template):
            raise ValueError(
                f"model.chat_template_kwargs must hold variables that the chat template reads, got {name!r}, "
                "which it does not mention or is given by the framework"
            )
    # Jinja trims a newline after a block, so each default ends its line and the template's first characters stay
    defaults = [
        f"{{% if {name} is not defined %}}{{% set {name} = {_literal(value)} %}}{{% endif %}}\n"
        for name, value in arguments.items()
    ]
    return "".join(defaults) + template


def _literal(value: Any) -> str:
    """Return the value as Jinja source, which is the same as Python source."""
    return ascii(value)
