"""Rendering of chat messages through a tokenizer's chat template. An error in a template is reported in one
sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

__all__ = ["Messages", "render_chat"]

Messages = Sequence[Mapping[str, Any]]
"""Chat messages, each with a `role` and a `content`."""

_TEMPLATE_ERRORS = (
    *(TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError),
)  # fmt: skip
"""Errors that code in a template may raise; its `raise_exception` raises a TemplateError."""


def render_chat(messages: Messages, tokenizer: Any) -> str:
    """Return the text of a prompt: the messages, then the opening of the assistant's reply.

    If the last message is the assistant's, it is the beginning of that reply. Its text follows the opening unchanged,
    although the template might change a finished reply (strip a space, add an empty think block).

    Raises:
        ValueError: there is no template, it cannot render these messages, or it leaves one out.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "chat messages need a chat template, and the tokenizer has none; set model.chat_template=plain (the text of "
            "the messages, for base models), model.chat_template=chatml, or the path of a Jinja file; or pass text"
        )
    messages, begun = list(messages), ""
    _check_messages(messages)
    if messages[-1]["role"] == "assistant":
        begun = messages.pop()["content"]
    try:
        text = _render(messages, tokenizer)
    except _TEMPLATE_ERRORS as error:
        raise ValueError(_explain(error, messages, tokenizer)) from error
    for message in messages:
        if message["role"] in ("system", "user") and _is_lost(message["content"], text):
            raise ValueError(
                f"the model's chat template leaves the {message['role']} message out: {message['content']!r}; "
                "set task.system_prompt='' and put its text into task.user_prompt, or give another template with "
                "model.chat_template"
            )
    return text + begun


def _render(messages: Messages, tokenizer: Any) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _check_messages(messages: Messages) -> None:
    for message in messages:
        if not isinstance(message.get("role"), str) or "content" not in message:
            raise ValueError(f"a chat message must have a role and a content, got {message!r}")
    begun = messages[-1]["content"]
    if messages[-1]["role"] == "assistant" and not isinstance(begun, str):
        raise ValueError(f"the beginning of a reply must be text, got {begun!r}")


def _is_lost(content: Any, text: str) -> bool:
    return isinstance(content, str) and content.strip() not in text


def _explain(error: Exception, messages: Messages, tokenizer: Any) -> str:
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    others = [message for message in messages if message["role"] != "system"]
    if others and len(others) < len(messages) and _renders(others, tokenizer):
        return (
            f"the model's chat template takes no system message ({said}); set task.system_prompt='' and put its text into "
            "task.user_prompt, or give another template with model.chat_template"
        )
    roles = ", ".join(message["role"] for message in messages)
    return (
        f"the model's chat template cannot render messages with the roles {roles}: {said}; give another template with "
        "model.chat_template, or arguments with model.chat_template_kwargs"
    )


def _renders(messages: Messages, tokenizer: Any) -> bool:
    try:
        _render(messages, tokenizer)
    except _TEMPLATE_ERRORS:
        return False
    return True
