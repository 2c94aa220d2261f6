"""What is scored: one completion, with everything that a scorer may ask for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ScoreJob"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreJob:
    """A completion and the prompt's data. It is pickled, so all values must be picklable."""

    completion: str
    row: dict[str, Any] = field(default_factory=dict)
    """The dataset's own columns, as the file holds them."""
    prompt: str | Sequence[Mapping[str, Any]] = ""
    """The question as the dataset holds it: a text or chat messages; empty stands for `row["question"]`."""
    answer: Any = None
    """The gold answer as the dataset holds it; None stands for `row["answer"]`."""

    transcript: Sequence[Mapping[str, Any]] = ()
    """Messages of the whole conversation, the completion last; empty where there was only one turn to see."""

    def named(self, name: str) -> Any:
        """Returns `question` or `answer`, from the job or else from the row."""
        given = self.prompt if name == "question" else self.answer
        return self.row.get(name) if given is None or given == "" else given
