"""The loop of every rank but the first. Only the first rank has the fleet, the scorers and the run directory.

    rank 0:   TrainLoop  ->  LeadingLearner: broadcasts each call with its arguments, then makes it
    others:   Follower   <-  makes the same call

So all ranks make the same calls on their learners, in the same order. Only the first rank decides which groups are admitted or
dropped, when a checkpoint is due, and when to stop.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

import torch

from rl.rollouts import RolloutGroup
from rl.trainer.learn.learner import Learner
from rl.trainer.metrics.mismatch import MismatchError
from rl.trainer.metrics.stopwatch import Stopwatch
from rl.trainer.metrics.training import LearningResult
from rl.trainer.ranks.group import Ranks

__all__ = ["Follower", "LeadingLearner", "dismiss"]


class _Order(Enum):
    GATHER_WEIGHTS = auto()
    GATHER_STATE = auto()
    WRITE_BESIDE = auto()
    END = auto()


@dataclass(frozen=True, slots=True)
class _Learn:
    groups: Sequence[RolloutGroup]
    version: int


@dataclass(frozen=True, slots=True)
class _Published:
    version: int


class LeadingLearner(Learner):
    """The first rank's learner; it broadcasts every call that needs the other ranks before it makes it."""

    def learn(
        self, groups: Sequence[RolloutGroup], version: int, stopwatch: Stopwatch
    ) -> LearningResult:
        with stopwatch("send"):
            self._ranks.broadcast(_Learn(groups, version))
        return super().learn(groups, version, stopwatch)

    def published(self, version: int) -> None:
        self._ranks.broadcast(_Published(version))
        super().published(version)

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        self._ranks.broadcast(_Order.GATHER_WEIGHTS)
        yield from super().named_weights()

    def state_dict(self) -> dict[str, Any]:
        self._ranks.broadcast(_Order.GATHER_STATE)
        return super().state_dict()

    def write_beside(self, directory: Path | None) -> None:
        self._ranks.broadcast(_Order.WRITE_BESIDE)
        super().write_beside(directory)


def dismiss(ranks: Ranks) -> None:
    """Tell the other ranks that the run has ended."""
    ranks.broadcast(_Order.END)


class Follower:
    """Makes the calls of the first rank on its own learner until the run ends.

    Args:
        learner: made like the first rank's.
        ranks: this process is not the first of them.
    """

    def __init__(self, learner: Learner, ranks: Ranks) -> None:
        self._learner = learner
        self._ranks = ranks

    def run(self) -> None:
        """Follow the first rank's orders until it ends the run. Only the first rank decides when to stop, whichever gets a signal."""
        while (order := self._ranks.broadcast(None)) is not _Order.END:
            self._do(order)

    def _do(self, order: object) -> None:
        learner = self._learner
        match order:
            case _Learn(groups, version):
                # the first rank has the same mismatch, saves what there is, and ends the run
                with suppress(MismatchError):
                    learner.learn(groups, version, Stopwatch())
            case _Published(version):
                learner.published(version)
            case _Order.GATHER_WEIGHTS:
                deque(learner.named_weights(), maxlen=0)
            case _Order.GATHER_STATE:
                learner.state_dict()
            case _Order.WRITE_BESIDE:
                learner.write_beside(None)
            case _:
                raise AssertionError(f"the first rank sent {order!r}")
