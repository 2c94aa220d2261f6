"""Input of a scorer: one completion, and all values that a scorer may ask for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ScoreJob"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreJob:
    """Completion and the data of its prompt. All values must be picklable, because jobs are sent to another
    process."""

    completion: str
    row: dict[str, Any] = field(default_factory=dict)
    """Unchanged columns of the dataset."""
    prompt: str | Sequence[Mapping[str, Any]] = ""
    """Question as in the dataset, a text or chat messages; empty means `row["question"]`."""
    answer: Any = None
    """Gold answer as in the dataset; None means `row["answer"]`."""

    transcript: Sequence[Mapping[str, Any]] = ()
    """Messages of the whole conversation, with the completion last; empty if the conversation had only one turn."""

    def named(self, name: str) -> Any:
        """Return the value of `question` or `answer`, from the job or else from the row."""
        given = self.prompt if name == "question" else self.answer
        return self.row.get(name) if given is None or given == "" else given
