"""Counts steps in a row that were skipped because a loss or a gradient was not finite, and ends a run of nothing else."""

import math

from rollout.core import NotFiniteError

__all__ = ["SkippedSteps"]


class SkippedSteps:
    """Steps skipped since the last one that changed the weights.

    Args:
        limit: `trainer.max_skipped_steps`.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._num_in_a_row = 0
        self._has_stepped = False

    @property
    def is_skipping(self) -> bool:
        """Whether the last step was skipped."""
        return self._num_in_a_row > 0

    @property
    def is_all_skipped(self) -> bool:
        """Whether steps were skipped and none has changed the weights."""
        return self.is_skipping and not self._has_stepped

    def observe(self, grad_norm: float) -> None:
        """Take in a step's gradient norm, which is not finite where the step was skipped.

        Raises:
            NotFiniteError: as many steps in a row as the limit were skipped.
        """
        if math.isfinite(grad_norm):
            self._num_in_a_row, self._has_stepped = 0, True
            return
        self._num_in_a_row += 1
        if self._num_in_a_row >= self._limit:
            raise NotFiniteError(
                f"{self._num_in_a_row} steps in a row were skipped because no loss or gradient was finite "
                f"(trainer.max_skipped_steps={self._limit}); their versions are not kept. Lower trainer.learning_rate, or "
                "look for scores or an algorithm that overflow"
            )

    def check_end(self) -> None:
        """Refuse to end as if something had been learned.

        Raises:
            NotFiniteError: every step of the run was skipped.
        """
        if self.is_all_skipped:
            raise NotFiniteError(
                f"all {self._num_in_a_row} steps were skipped because no loss or gradient was finite; nothing was trained, "
                "and nothing is kept"
            )
