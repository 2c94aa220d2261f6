"""Scorer of mathematics in text or LaTeX, and of short answers in words."""

from typing import Any

from rl.rewards.answers import parse_gold
from rl.rewards.answers.equality import are_equal
from rl.rewards.answers.final_answer import final_answers

__all__ = ["score_mathematics"]


def score_mathematics(completion: str, row: dict[str, Any], *, answer: Any = None) -> float:
    """Return 1.0 if the completion's final answer equals the gold answer, else 0.0.

    A completion without an answer, or with one that cannot be compared, is wrong.

    Args:
        completion: text of the completion.
        row: columns of the dataset.
        answer: gold answer; None: `row["answer"]`.

    Raises:
        ValueError: the gold answer is not one that can be compared.
    """
    value = row["answer"] if answer is None else answer
    try:
        gold = parse_gold(value)
    except ValueError as error:
        raise ValueError(f"{error}, or name a scorer of your own in task.scorer") from error
    if isinstance(value, str) and completion.strip() == value.strip():
        return 1.0  # needed if the gold solution contains another box before its final answer
    given = final_answers(completion)
    return float(any(are_equal(text, other) for other in gold.alternatives for text in given))
