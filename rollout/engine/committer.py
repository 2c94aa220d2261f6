"""When verified weights come into force, and what becomes of the requests in flight: `engine.on_update`.

    drain      no request is begun any more; those begun end with the old weights, then the new ones come into force
    keep       at once; what was computed of a request is kept, and its next tokens read keys of several versions
    recompute  at once; requests begun are computed anew, so that their next tokens are the new policy's, to the bit

With `keep`, too, a request that has drawn no token yet is computed anew: that costs a part of a prompt, and so neither it nor
its siblings read keys of weights that none of their tokens comes from.
"""

from rollout.config import OnUpdate
from rollout.engine.runner import Runner
from rollout.engine.scheduler import Scheduler
from rollout.weights.staging import WeightReceiver

__all__ = ["Committer"]


class Committer:
    """Acts between two engine steps.

    Args:
        receiver: of the weights.
        scheduler: of the requests.
        runner: of the cache.
        on_update: see above.
    """

    def __init__(
        self, receiver: WeightReceiver, scheduler: Scheduler, runner: Runner, on_update: OnUpdate
    ) -> None:
        self._receiver = receiver
        self._scheduler = scheduler
        self._runner = runner
        self._on_update = on_update
        self.is_pending = False
        """A commit waits for requests to end."""

    @property
    def _is_ready(self) -> bool:
        return self._on_update is not OnUpdate.drain or not self._scheduler.num_begun

    def commit(self) -> None:
        """Put the verified weights in force now.

        Raises:
            RuntimeError: nothing is verified; or requests have begun that `drain` lets end first.
        """
        if not self._is_ready:
            raise RuntimeError(
                f"commit needs a drained engine when engine.on_update is drain; {self._scheduler.num_begun} "
                "requests have begun; commit_when_ready waits for them"
            )
        self._receiver.commit()
        self._scheduler.begin_version(
            self._receiver.version, keeps_kv=self._on_update is OnUpdate.keep
        )
        self._runner.reset(kept_blocks=self._scheduler.blocks_in_use())
        self._stop_waiting()

    def commit_when_ready(self) -> None:
        """Commit now if that is allowed, else when the last request that has begun has ended.

        Raises:
            RuntimeError: nothing is verified.
        """
        self._receiver.require_verified()
        self.is_pending = self._scheduler.is_draining = True
        self.advance()

    def advance(self) -> None:
        """A step is about to begin: commit if one is pending and nothing is in its way any more."""
        if self.is_pending and self._is_ready:
            self.commit()

    def rollback(self) -> None:
        """Drop staged weights; the old version stays in force."""
        self._receiver.rollback()
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        self.is_pending = self._scheduler.is_draining = False
