"""Conversion of dataset values to questions: texts or chat messages.

    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 + 3 ="}]

The list may also contain messages of the assistant. A string with such a list, in JSON or as Python prints it, is
parsed.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Message", "Question", "text_of_question", "to_question"]

Message = dict[str, Any]
"""Chat message: `role`, `content`, and further keys for the chat template."""

Question = str | tuple[Message, ...]
"""Text, or chat messages."""


def to_question(value: Any) -> Question:
    """Return the question in a value of a dataset.

    Raises:
        ValueError: the value is neither a text nor chat messages, or asks nothing; the message is a clause.
    """
    if isinstance(value, str):
        messages = _messages_in(value)
        if messages is None:
            if not value.strip():
                raise ValueError("an empty prompt asks nothing")
            return value
        value = messages
    if not isinstance(value, Sequence) or isinstance(value, (bytes, bytearray)):
        name = "a missing value" if value is None else f"a {type(value).__name__}"
        raise ValueError(f"{name} is not a prompt; a prompt is a text or a list of chat messages")
    if not value:
        raise ValueError("an empty list of chat messages asks nothing")
    messages = tuple(_to_message(item) for item in value)
    asked = [message["content"] for message in messages if message["role"] == "user"]
    if not asked:
        raise ValueError("chat messages without a user message ask nothing")
    if not asked[-1].strip():
        raise ValueError("an empty last user message asks nothing")
    return messages


def text_of_question(question: Question) -> str:
    """Return the last text of the user."""
    if isinstance(question, str):
        return question
    return next(m["content"] for m in reversed(question) if m["role"] == "user")


def _messages_in(text: str) -> list[Any] | None:
    """Return the chat messages that a text contains, in JSON or as Python prints them; None for any other text."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _python_list(text)
    is_chat = isinstance(value, list) and all(
        isinstance(item, dict) and {"role", "content"} <= item.keys() for item in value
    )
    return value if is_chat and value else None


def _python_list(text: str) -> Any:
    """Return the list in a text that Python's `str` wrote, as pandas does in CSV files; None if there is none."""
    if "role" not in text or "content" not in text:
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _to_message(item: Any) -> Message:
    if not isinstance(item, Mapping) or "role" not in item or "content" not in item:
        raise ValueError(f"a chat message must have a role and a content, got {item!r:.80}")
    role, content = item["role"], _text_of_content(item["content"])
    if not isinstance(role, str) or not role:
        raise ValueError(
            f"the role of a chat message must be a text such as user, got {role!r:.80}"
        )
    # Arrow adds keys with None to messages that lack them
    others = {key: value for key, value in item.items() if value is not None}
    return {**others, "role": role, "content": content}


def _text_of_content(content: Any) -> str:
    """Return the text of a content, which may be a list of parts: `[{"type": "text", "text": ...}]`."""
    if isinstance(content, str):
        return content
    is_parts = isinstance(content, (list, tuple)) and all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content
    )
    if not is_parts:
        raise ValueError(f"the content of a chat message must be a text, got {content!r:.80}")
    return "".join(part["text"] for part in content)
