"""Live weights of a fleet, and the update on its way to workers. Time is passed in."""

from collections.abc import Sequence

from rollout.fleet.cluster.pool import PhaseEnded, WorkerPool
from rollout.fleet.cluster.report import WorkerReport
from rollout.fleet.cluster.update_round import Phase, UpdateRound
from rollout.weights.update import WeightUpdate

__all__ = ["WeightsInForce"]

_SLOWEST_BYTES_PER_SECOND = 50e6


class WeightsInForce:
    """Takes one `UpdateRound` at a time through the pool, and keeps what it brought for workers that come later.

    Args:
        pool: pool of the workers.
        version: version of the weights that the first workers load.
        digest: digest of these weights.
        start_seconds: time limit of a phase, in addition to the time that the bytes take.
    """

    def __init__(
        self, pool: WorkerPool, *, version: int, digest: str, start_seconds: float
    ) -> None:
        self.version = version
        self.digest = digest
        self._pool = pool
        self._start_seconds = start_seconds
        self._current: WeightUpdate | None = None  # None: what workers load themselves
        self._round: tuple[UpdateRound, WeightUpdate] | None = None
        self._phase_began = 0.0
        self._phase_seconds: dict[str, float] = {}  # of the last round

    @property
    def is_changing(self) -> bool:
        """Whether a round is under way."""
        return self._round is not None

    def are_held(self, report: WorkerReport) -> bool:
        """Whether a worker holds these weights, by version and digest."""
        return (report.policy_version, report.digest) == (self.version, self.digest)

    def begin(
        self, update: WeightUpdate, worker_ids: Sequence[str], now: float, *, is_last_attempt: bool
    ) -> UpdateRound:
        """Begin to bring workers to an update."""
        assert self._round is None, "one update at a time"
        begun = UpdateRound(update.version, worker_ids, is_last_attempt=is_last_attempt)
        self._round = (begun, update)
        self._ask(begun, update, now)
        return begun

    def begin_join(self, worker_ids: Sequence[str], now: float) -> None:
        """Begin to bring workers with older weights to the live version."""
        assert self._current is not None, "an earlier version was live"
        self.begin(self._current, worker_ids, now, is_last_attempt=True)

    def answer(self, event: PhaseEnded) -> None:
        if self._round is not None:
            current, update = self._round
            error = event.error or _wrong_weights(event, update)
            current.answer(event.worker_id, event.phase, error)

    def lose(self, worker_id: str, reason: str) -> None:
        """Notes that a worker is gone."""
        if self._round is not None:
            self._round[0].lose(worker_id, reason)

    def late(self, now: float) -> list[tuple[str, str]]:
        """Returns the workers that take too long over a phase, each with a message. A commit has no limit, since it may wait
        for requests to end."""
        if self._round is None:
            return []
        current, update = self._round
        seconds = now - self._phase_began
        limit = self._start_seconds + update.num_bytes / _SLOWEST_BYTES_PER_SECOND
        if current.phase is Phase.COMMIT or seconds <= limit:
            return []
        reason = f"asked to {current.phase.value}, it said nothing for {seconds:.0f} s"
        return [(worker_id, reason) for worker_id in current.pending]

    def advance(self, now: float) -> UpdateRound | None:
        """Go on if everyone has answered; returns the round once it is over, and makes the committed version live."""
        if self._round is None:
            return None
        current, update = self._round
        while not current.is_done and not current.pending:
            name = f"fleet/{current.phase.name.lower()}_seconds"
            self._phase_seconds[name] = now - self._phase_began
            if current.advance():
                self._ask(current, update, now)
        if not current.is_done:
            return None
        self._round = None
        if current.committed and current.version > self.version:
            self.version, self.digest = current.version, update.manifest.digest
            self._current = _kept(update, self._current)
        return current

    def describe(self, now: float) -> str:
        """Describes the workers that are waited for; empty if there are none."""
        if self._round is None:
            return ""
        current, since = self._round[0], now - self._phase_began
        names = ", ".join(current.pending)
        return f"{names} to {current.phase.value} version {current.version} since {since:.0f} s"

    def take_phase_seconds(self) -> dict[str, float]:
        """Metrics of the phases since the last call."""
        seconds, self._phase_seconds = self._phase_seconds, {}
        return seconds

    def _ask(self, current: UpdateRound, update: WeightUpdate, now: float) -> None:
        self._phase_began = now
        self._pool.ask(current.asked, current.phase, update)


def _wrong_weights(event: PhaseEnded, update: WeightUpdate) -> str:
    """Returns what is wrong with the weights of a worker that reports a commit; empty if nothing is."""
    held = (event.report.policy_version, event.report.digest)
    if event.phase is not Phase.COMMIT or held == (update.version, update.manifest.digest):
        return ""
    return f"it committed, but holds version {held[0]} ({held[1]})"


def _kept(update: WeightUpdate, before: WeightUpdate | None) -> WeightUpdate:
    """A copy for workers that join later, in the memory of the one before where it fits."""
    tensors = {}
    for name, tensor in update.tensors.items():
        old = None if before is None else before.tensors.get(name)
        fits = old is not None and (old.shape, old.dtype) == (tensor.shape, tensor.dtype)
        tensors[name] = old.copy_(tensor) if fits else tensor.detach().to("cpu", copy=True)
    return WeightUpdate(version=update.version, manifest=update.manifest, tensors=tensors)
