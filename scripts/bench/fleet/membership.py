"""Times workers that come and go: from their start to their serving, and from their end to their requests answered."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rollout.config import EngineConfig, ModelConfig, RayFleetConfig, StorageDtype
from rollout.core import Request, SampleKey, SamplingParams
from rollout.fleet.cluster.fleet import WorkerFleet, WorkerState
from rollout.fleet.workers.process import WorkerSpec
from rollout.fleet.workers.ray_pool import RayPool
from rollout.models.checkpoint import load_decoder, torch_dtype
from rollout.models.int8 import int8_weights
from rollout.models.sources import resolve_model
from rollout.weights.update import make_update

__all__ = ["measure_membership"]

_PROMPT = tuple(range(5, 45))
_REQUESTS_PER_WORKER = 8
_MAX_TOKENS = 96
_POLL_SECONDS = 0.02
_PATIENCE_SECONDS = 300.0


@dataclass(slots=True)
class _Batches:
    """Requests of one size for all workers, each time under new names."""

    size: int
    count: int = 0

    def next(self) -> list[Request]:
        self.count += 1
        params = SamplingParams(max_tokens=_MAX_TOKENS, ignore_eos=True)
        return [
            Request(
                request_id=f"{self.count}/{i}",
                token_ids=_PROMPT,
                params=params,
                key=SampleKey(params.seed, self.count, i),
            )
            for i in range(self.size)
        ]


def measure_membership(
    model: ModelConfig, engine: EngineConfig, fleet: RayFleetConfig, *, repeats: int
) -> dict[str, Any]:
    """Time a worker that joins a fleet at its second version and leaves again, and one that is killed while it decodes.

    Args:
        model: model of every worker.
        engine: engine config of every worker.
        fleet: number of workers besides the one that joins.
        repeats: repeats of both measurements.

    Returns:
        Medians, least and greatest, in seconds. Join: time to load, and to serve the current version. Recovery: time from the
        kill until the fleet has noticed, until other workers have answered all requests of the killed one, and until a new
        worker serves in its place. `undisturbed_seconds`: time of the same requests without a kill.

    Raises:
        ValueError: the fleet has only one worker, so no other could answer its requests.
        RuntimeError: something does not happen within 300 s.
    """
    if fleet.num_workers < 2:
        raise ValueError(f"fleet.num_workers must be >= 2 for membership, got {fleet.num_workers}")
    directory, dtype = resolve_model(model), torch_dtype(model.dtype, "cpu")
    weights = list(load_decoder(directory, dtype=dtype).hf_tensors())
    if engine.weight_dtype is StorageDtype.int8:
        weights = list(int8_weights(weights))
    fleet = replace(fleet, max_replacements=repeats + fleet.max_replacements)
    spec = WorkerSpec(
        weights=directory,
        dtype=model.dtype,
        engine=engine,
        policy_version=0,
        num_threads=fleet.threads_per_worker,
    )
    digest = make_update(0, weights).manifest.digest
    pool = RayPool(spec, fleet)
    batches = _Batches(_REQUESTS_PER_WORKER * fleet.num_workers)
    rows: list[dict[str, float]] = []
    with WorkerFleet(pool, fleet, policy_version=0, digest=digest) as workers:
        start = time.perf_counter()
        workers.start()
        start_seconds = time.perf_counter() - start
        workers.update_weights(make_update(1, weights))
        _answer(workers, batches.next())  # warms up, and tells the router how fast they are
        for _ in range(repeats):
            rows.append(_join(workers) | _lose(workers, pool, batches))
    return {
        "measures": "membership",
        "dtype": str(dtype).removeprefix("torch."),
        "workers": fleet.num_workers,
        "requests": batches.size,
        "max_tokens": _MAX_TOKENS,
        "repeats": repeats,
        "start_seconds": round(start_seconds, 3),
        **{
            f"{name}{suffix}": round(of(row[name] for row in rows), 3)
            for name in rows[0]
            for suffix, of in (("", statistics.median), ("_min", min), ("_max", max))
        },
    }


def _join(workers: WorkerFleet) -> dict[str, float]:
    """Adds one worker, which leaves again."""
    start = time.perf_counter()
    joiner = workers.add_worker()
    _wait_until(workers, lambda: workers.workers[joiner] is not WorkerState.STARTING)
    loaded = time.perf_counter()
    _wait_until(workers, lambda: workers.workers[joiner] is WorkerState.SERVING)
    serving = time.perf_counter()
    workers.remove_worker(joiner)
    _wait_until(workers, lambda: joiner not in workers.workers)
    return {"join_load_seconds": loaded - start, "join_seconds": serving - start}


def _lose(workers: WorkerFleet, pool: RayPool, batches: _Batches) -> dict[str, float]:
    """A worker that is killed with all its requests begun and none answered, beside the same without."""
    undisturbed = _answer(workers, batches.next())
    workers.submit(batches.next())
    before = set(workers.workers)
    victim = min(before)
    its_requests = workers.requests_of(victim)
    answered: set[str] = set()
    began = time.perf_counter()
    while time.perf_counter() - began < undisturbed / 4:
        answered |= {c.request_id for c in workers.poll(_POLL_SECONDS)}
    its_requests -= answered
    if not its_requests:
        raise RuntimeError(f"{victim} had answered all its requests before it was killed")
    start = time.perf_counter()
    pool.crash(victim)
    seconds: dict[str, float] = {}

    def is_over() -> bool:
        states = workers.workers
        has_happened = {
            "noticed_seconds": victim not in states,
            "answered_seconds": its_requests <= answered,
            "replaced_seconds": any(
                state is WorkerState.SERVING for w, state in states.items() if w not in before
            ),
        }
        for name in (name for name, is_true in has_happened.items() if is_true):
            seconds.setdefault(name, time.perf_counter() - start)
        return len(seconds) == len(has_happened) and not workers.status().running

    _wait_until(workers, is_over, answered)
    return {"undisturbed_seconds": undisturbed, **seconds}


def _answer(workers: WorkerFleet, requests: list[Request]) -> float:
    start = time.perf_counter()
    workers.submit(requests)
    _wait_until(workers, lambda: not workers.status().running)
    return time.perf_counter() - start


def _wait_until(
    workers: WorkerFleet, is_true: Callable[[], bool], answered: set[str] | None = None
) -> None:
    """Attend to the fleet meanwhile; ids of what it answers go into `answered`."""
    deadline = time.perf_counter() + _PATIENCE_SECONDS
    while not is_true():
        if time.perf_counter() > deadline:
            raise RuntimeError(f"nothing happens for {_PATIENCE_SECONDS:g} s: {workers.workers}")
        completions = workers.poll(_POLL_SECONDS)
        if answered is not None:
            answered |= {c.request_id for c in completions}
        if not workers.status().running:
            time.sleep(_POLL_SECONDS)  # `poll` then does not wait
