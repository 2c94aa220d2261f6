"""Form of a prompt: the system message, the user message and the beginning of the reply around a question.

`{question}` is replaced by the question, and `{column}` by that column of the row. Other braces stay, such as
`\\boxed{}`, and so do braces after a LaTeX command, as in `\\boxed{answer}` or `\\frac{a}{b}`. `{{column}}` gives
`{column}`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, Self

from rl.tasks.columns import describe_columns, reach
from rl.tasks.config import TaskConfig
from rl.tasks.messages import Message, Question, text_of_question

__all__ = ["PromptForm"]

_BRACES = re.compile(r"\{\{(?P<literal>[A-Za-z_][\w.]*)\}\}|\{(?P<name>[A-Za-z_][\w.]*)\}")
_LATEX = re.compile(r"(\\[A-Za-z]+\*?(\[[^\]]*\])?(\{[^{}]*\})*|[\^_])$")
_QUESTION = "question"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptForm:
    """Texts around a question."""

    system_prompt: str = ""
    """System message; empty sends none. A prompt's own system message takes precedence."""
    user_prompt: str = "{question}"
    """User message, or the last user message of a list of chat messages."""
    reply_prefix: str = ""
    """Beginning of the reply, which is given and not sampled."""
    hidden: str = ""
    """Column that no prompt may show, because it contains the answer."""

    @classmethod
    def of(cls, config: TaskConfig, *, hidden: str = "answer") -> Self:
        return cls(
            system_prompt=config.system_prompt,
            user_prompt=config.user_prompt,
            reply_prefix=config.reply_prefix,
            hidden=hidden,
        )

    def messages(self, question: Question, row: Mapping[str, Any]) -> tuple[Message, ...]:
        """Return the chat messages that ask a question.

        Raises:
            ValueError: the form names a column that the row lacks.
        """
        text = text_of_question(question)
        asked = self._fill("user_prompt", text, row)
        if isinstance(question, str):
            messages: list[Message] = [{"role": "user", "content": asked}]
        else:
            messages = list(question)
            last = max(i for i, message in enumerate(messages) if message["role"] == "user")
            messages[last] = {**messages[last], "content": asked}
        if self.system_prompt and all(m["role"] not in ("system", "developer") for m in messages):
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        if self.reply_prefix:
            if messages[-1]["role"] == "assistant":
                raise ValueError(
                    "task.reply_prefix must be empty where prompts end with the assistant's turn, "
                    f"got {self.reply_prefix!r}"
                )
            begun = self._fill("reply_prefix", text, row)
            messages.append({"role": "assistant", "content": begun})
        return tuple(messages)

    def _fill(self, key: str, question: str, row: Mapping[str, Any]) -> str:
        filled = []
        for text, name in _pieces(getattr(self, key)):
            filled.append(text)
            if name == _QUESTION:
                filled.append(question)
            elif name:
                filled.append(self._value(key, name, row))
        return "".join(filled)

    def _value(self, key: str, name: str, row: Mapping[str, Any]) -> str:
        if name == self.hidden:
            raise ValueError(f"task.{key} must not show the answer, got {{{name}}}")
        try:
            value = reach(row, name)
        except LookupError:
            value = None
        if not isinstance(value, (str, int, float, Decimal)):
            raise ValueError(
                f"task.{key} has {{{name}}}, which must be {{question}} or a column with a text or a number, one of "
                f"{describe_columns([row])}; to keep the braces, double them: {{{{{name}}}}}"
            )
        return str(value)


@cache
def _pieces(template: str) -> tuple[tuple[str, str], ...]:
    """Return pairs of a text and the name of the placeholder after it; the last name is empty."""
    pieces, text, end = [], "", 0
    for match in _BRACES.finditer(template):
        text += template[end : match.start()]
        end = match.end()
        name = match["name"]
        if name is None:
            text += f"{{{match['literal']}}}"
        elif name != _QUESTION and _LATEX.search(template[: match.start()]):
            text += match[0]
        else:
            pieces.append((text, name))
            text = ""
    return (*pieces, (text + template[end:], ""))
