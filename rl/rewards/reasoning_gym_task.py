"""Scorer of reasoning-gym's tasks, which the library provides."""

import functools
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ReasoningGymScorer"]


@dataclass(frozen=True)
class ReasoningGymScorer:
    """Scorer of the text in the last <answer> tags, or of the whole completion if there are none.

    Many tasks give partial credit, so scores lie in [0, 1].
    """

    name: str
    params: dict[str, Any] = field(default_factory=dict)

    def prepare(self) -> None:
        _ = self._dataset

    def __call__(self, completion: str, row: dict[str, Any], /) -> float:
        from reasoning_gym.utils import extract_answer

        tagged = extract_answer(completion)
        answer = completion.strip() if tagged is None else tagged
        return self._dataset.score_answer(answer=answer, entry=row)

    @functools.cached_property
    def _dataset(self) -> Any:
        import reasoning_gym  # takes 2 s, so only the scorer's process imports it

        return reasoning_gym.create_dataset(self.name, **self.params, seed=0)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "params": self.params,
        }  # without the dataset, which each process creates itself
