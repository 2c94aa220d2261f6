"""Workers as Ray actors, on this machine or in a cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

from rollout.config import RayFleetConfig
from rollout.core import Request
from rollout.fleet.cluster.pool import Event, Lost, PhaseEnded, Reported
from rollout.fleet.cluster.update_round import Phase
from rollout.fleet.workers.broadcast import Broadcast
from rollout.fleet.workers.process import WorkerProcess, WorkerSpec
from rollout.ray_session import actor_options, join_ray, reason_of
from rollout.weights.update import WeightUpdate

__all__ = ["RayPool"]

_POLL_SECONDS = 0.25  # a worker's longest silence while all is well
_NUM_CALLS = 4  # at the same time in a worker: poll, a phase of an update, submit, cancel


@dataclass(frozen=True, slots=True)
class _Call:
    worker_id: str
    phase: Phase | None = None
    """Phase that the call runs; None for a poll."""
    version: int = -1


class RayPool:
    """A `WorkerPool` of actors. One call of `poll` is always under way at each of them.

    Args:
        spec: what every worker is made from, except `faults`.
        config: config of the fleet.

    Raises:
        ValueError: no cluster at the address, or this process has joined another; Ray that runs here already is left running.
    """

    def __init__(self, spec: WorkerSpec, config: RayFleetConfig) -> None:
        import ray

        self._ray = ray
        self._spec = spec
        self._config = config
        self._actors: dict[str, Any] = {}
        self._calls: dict[Any, _Call] = {}  # by their future
        self._is_ours = join_ray(config.address)
        self._broadcast = Broadcast(ray.util.get_node_ip_address())

    def now(self) -> float:
        return monotonic()

    def start(self, worker_id: str) -> None:
        ordinal = int(worker_id.rpartition("-")[2])
        faults = [fault for fault in self._config.faults if fault.worker == ordinal]
        remote = self._ray.remote(WorkerProcess).options(
            max_concurrency=_NUM_CALLS,
            scheduling_strategy="SPREAD",
            **actor_options(self._config.address, num_threads=self._config.threads_per_worker),
        )
        self._actors[worker_id] = remote.remote(replace(self._spec, faults=faults))
        self._poll(worker_id)

    def submit(self, worker_id: str, requests: Sequence[Request]) -> None:
        self._actors[worker_id].submit.remote(requests)

    def cancel(self, worker_id: str, request_ids: Sequence[str]) -> None:
        self._actors[worker_id].cancel.remote(request_ids)

    def restore(self, worker_id: str, speculation: Mapping[str, Any]) -> None:
        self._actors[worker_id].restore.remote(speculation)

    def ask(self, worker_ids: Sequence[str], phase: Phase, update: WeightUpdate) -> None:
        places = self._broadcast.begin(worker_ids, update) if phase is Phase.STAGE else {}
        for worker_id in worker_ids:
            actor = self._actors[worker_id]
            if phase is Phase.STAGE:
                future = actor.stage.remote(update.manifest, places[worker_id])
            else:
                future = actor.ask.remote(phase)
            self._calls[future] = _Call(worker_id, phase, update.version)

    def stop(self, worker_id: str) -> None:
        self._calls = {f: call for f, call in self._calls.items() if call.worker_id != worker_id}
        self._ray.kill(self._actors.pop(worker_id))
        self._broadcast.lose(worker_id)

    def crash(self, worker_id: str) -> None:
        """End a worker as if it had ended itself: `Lost` follows."""
        self._ray.kill(self._actors[worker_id])

    def wait(self, timeout_seconds: float) -> list[Event]:
        futures = list(self._calls)
        if not futures:
            return []
        first, _ = self._ray.wait(futures, timeout=timeout_seconds)
        if not first:
            return []
        ready, _ = self._ray.wait(futures, num_returns=len(futures), timeout=0)
        return [self._event(future, self._calls.pop(future)) for future in ready]

    def close(self) -> None:
        for worker_id in list(self._actors):
            self.stop(worker_id)
        self._broadcast.close()
        if self._is_ours:
            self._ray.shutdown()

    def _poll(self, worker_id: str) -> None:
        future = self._actors[worker_id].poll.remote(_POLL_SECONDS)
        self._calls[future] = _Call(worker_id)

    def _event(self, future: Any, call: _Call) -> Event:
        try:
            report, outcome = self._ray.get(future)
        except self._ray.exceptions.RayError as error:
            return Lost(worker_id=call.worker_id, reason=reason_of(error))
        if call.phase is None:
            self._poll(call.worker_id)
            return Reported(worker_id=call.worker_id, report=report, completions=outcome)
        return PhaseEnded(
            worker_id=call.worker_id,
            phase=call.phase,
            version=call.version,
            report=report,
            error=outcome,
        )
