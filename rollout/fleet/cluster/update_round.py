"""One weight update at several workers: either all of them commit it, or none does. Plain Python.

    STAGE ──all──> VERIFY ──all──> COMMIT ──> DONE
      └──── some failed ────> ROLLBACK ────────^

The round does not wait for workers that are gone; in the last attempt, nor do those that failed while others did not. The decision
falls once, between VERIFY and COMMIT: a worker that fails to commit after it must not serve any more.
"""

from collections.abc import Sequence
from enum import Enum

__all__ = ["Phase", "UpdateRound"]


class Phase(Enum):
    STAGE = "stage"
    VERIFY = "verify"
    COMMIT = "commit"
    ROLLBACK = "roll back"
    DONE = "done"


class UpdateRound:
    """Collects the answers of `worker_ids` phase by phase.

    Args:
        version: version that the workers are brought to.
        worker_ids: at least one.
        is_last_attempt: whether the update goes on without workers that fail, as long as one does not.
    """

    def __init__(self, version: int, worker_ids: Sequence[str], *, is_last_attempt: bool) -> None:
        assert worker_ids, "an update needs a worker"
        self.version = version
        self.phase = Phase.STAGE
        self.committed: list[str] = []
        self.failures: dict[str, str] = {}
        """Why, by worker."""
        self._is_last_attempt = is_last_attempt
        self._asked = list(worker_ids)
        self._pending = set(worker_ids)
        self._gone: set[str] = set()

    @property
    def asked(self) -> list[str]:
        """Workers that the phase asks."""
        return list(self._asked)

    @property
    def pending(self) -> list[str]:
        """Workers that have not answered in this phase."""
        return [worker_id for worker_id in self._asked if worker_id in self._pending]

    @property
    def is_done(self) -> bool:
        return self.phase is Phase.DONE

    @property
    def has_lost(self) -> bool:
        """Whether a worker is gone, which may be why others failed: they were receiving together."""
        return bool(self._gone)

    def answer(self, worker_id: str, phase: Phase, error: str = "") -> None:
        """Notes an answer; ignores one to an earlier phase, or of a worker that was not asked."""
        if phase is self.phase and worker_id in self._pending:
            self._pending.remove(worker_id)
            if error:
                self.failures[worker_id] = f"{phase.value}: {error}"

    def lose(self, worker_id: str, reason: str) -> None:
        """Records that a worker is gone; it counts as failed in the current phase."""
        if worker_id in self._asked:
            self.failures.setdefault(worker_id, f"{self.phase.value}: {reason}")
            self._gone.add(worker_id)
            self._pending.discard(worker_id)

    def advance(self) -> bool:
        """Go on to the next phase if everyone has answered; True if somebody is to be asked in it."""
        if self._pending or self.is_done:
            return False
        good = [worker_id for worker_id in self._asked if worker_id not in self.failures]
        living = [worker_id for worker_id in self._asked if worker_id not in self._gone]
        match self.phase:
            case Phase.STAGE | Phase.VERIFY if good and (good == living or self._is_last_attempt):
                self._begin(Phase.VERIFY if self.phase is Phase.STAGE else Phase.COMMIT, good)
            case Phase.COMMIT if good:
                self.committed = good
                self._begin(Phase.DONE, [])
            case Phase.ROLLBACK:
                self._begin(Phase.DONE, [])
            case _:  # a commit that failed everywhere left everyone as they were
                self._begin(Phase.ROLLBACK, living)
        return not self.is_done

    def _begin(self, phase: Phase, worker_ids: list[str]) -> None:
        self._asked = worker_ids
        self._pending = set(worker_ids)
        self.phase = phase if worker_ids else Phase.DONE
