"""Tables of sampled rollouts for W&B: a few per run, however many steps it has.

Each table holds the rows since the last one, so what is uploaded grows linearly with the steps. One table per step would
make one artifact per step. A table that is uploaded whole at every step, or that names all of its parts, grows
quadratically (measured with wandb 0.31).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rl.tracking.events import SAMPLE_COLUMNS

if TYPE_CHECKING:
    import wandb

__all__ = ["SampleTables"]


class SampleTables:
    """Collects rows of samples and gives them out as a table every `every_steps` steps."""

    def __init__(self, every_steps: int) -> None:
        self._every_steps = every_steps
        self._rows: list[Mapping[str, Any]] = []
        self._steps = 0

    def add(self, samples: Sequence[Mapping[str, Any]]) -> "wandb.Table | None":
        """Collect the samples of one step; returns a table when one is due."""
        self._rows += samples
        self._steps += 1
        return self.take() if self._steps % self._every_steps == 0 else None

    def take(self) -> "wandb.Table | None":
        """The rows collected so far as a table, which are then forgotten; None where there are none."""
        rows, self._rows = self._rows, []
        return _table(rows) if rows else None


def _table(samples: Sequence[Mapping[str, Any]]) -> "wandb.Table":
    import wandb

    # an answer may be a number in one row and text in the next; W&B wants one type per column
    rows = [{**sample, "answer": str(sample["answer"])} for sample in samples]
    return wandb.Table(
        columns=list(SAMPLE_COLUMNS),
        data=[[row[column] for column in SAMPLE_COLUMNS] for row in rows],
    )
