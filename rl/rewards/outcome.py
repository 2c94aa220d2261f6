"""Outcome of scoring one completion: a score, or the reason why there is none."""

import math
from dataclasses import dataclass
from enum import Enum

__all__ = ["OutcomeKind", "ScoreOutcome"]


class OutcomeKind(Enum):
    SCORE = "score"
    ERROR = "error"
    """The scorer raised an error, returned no finite number, or lost its process."""
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOutcome:
    """Finite `score` if `kind` is SCORE, else only a `message` with the reason."""

    kind: OutcomeKind
    score: float | None = None
    message: str = ""

    def __post_init__(self) -> None:
        if self.kind is OutcomeKind.SCORE:
            if self.score is None or not math.isfinite(self.score):
                raise ValueError(f"the score of a SCORE must be finite, got {self.score!r}")
        elif self.score is not None:
            raise ValueError(f"an {self.kind.name} must have no score, got {self.score!r}")
        elif not self.message:
            raise ValueError(f"the message of an {self.kind.name} must say why, got ''")
