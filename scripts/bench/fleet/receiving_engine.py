"""An engine in a process of its own that decodes while it takes weight updates, and keeps the times."""

import threading
import time
from collections.abc import Callable
from itertools import pairwise
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue

import torch

from rollout.build.engines import load_engine
from rollout.config import EngineConfig, ModelConfig, OnUpdate
from rollout.core import Request, SampleKey, SamplingParams
from rollout.engine.engine import Engine
from rollout.weights.manifest import Manifest
from rollout.weights.transport.receiver import CollectiveReceiver

__all__ = ["serve"]

_STEPS_AFTER = 2  # a commit
_PROMPT = list(range(5, 45))


def serve(
    pipe: Connection, model: ModelConfig, config: EngineConfig, concurrency: int, num_threads: int
) -> None:
    """Answer `(name of a public method, its arguments)` with what it gives, until an empty name comes."""
    torch.set_num_threads(num_threads)
    engine = _ReceivingEngine(load_engine(model, config), concurrency)
    threading.Thread(target=engine.run, name="engine", daemon=True).start()
    pipe.send("ready")
    while True:
        call, args = pipe.recv()
        if not call:
            return
        pipe.send(getattr(engine, call)(*args))


class _ReceivingEngine:
    def __init__(self, engine: Engine, concurrency: int) -> None:
        self._engine = engine
        self._concurrency = concurrency
        self._receiver = CollectiveReceiver()
        self._between_steps: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._num_requests = 0
        self._running: set[str] = set()
        self._step_ends: list[tuple[float, int]] = []  # and the version that it was computed with

    def run(self) -> None:
        """Decode for good; the thread's own work."""
        while True:
            try:
                self._between_steps.get(block=self._concurrency == 0)()
            except Empty:
                self._step()

    def join(self, address: tuple[str, int], rank: int, size: int, generation: int) -> None:
        self._receiver.join(address, rank, size, generation)

    def receive(self, manifest: Manifest) -> dict[str, float]:
        """Stage and verify beside the engine; returns the seconds of both."""
        start = time.perf_counter()
        self._receiver.receive(manifest, self._engine.weights)
        staged = time.perf_counter()
        self._engine.weights.verify()
        return {"stage": staged - start, "verify": time.perf_counter() - staged}

    def commit(self) -> float:
        """Make the new weights live between two steps; returns how long that took, in seconds."""
        taken = SimpleQueue[float]()

        def commit() -> None:
            if self._engine.config.on_update is OnUpdate.drain:
                self._drop_all()
            start = time.perf_counter()
            self._engine.weights.commit()
            taken.put(time.perf_counter() - start)

        self._between_steps.put(commit)
        return taken.get()

    def steps_since(self, start: float) -> list[tuple[float, int]]:
        """Return the seconds from the end of each step to the end of the next, for all steps since then and `_STEPS_AFTER` more.

        Each comes with the version of the weights that the later step used.
        """
        wanted = len(self._step_ends) + _STEPS_AFTER
        while self._concurrency and len(self._step_ends) < wanted:
            time.sleep(0.001)
        ends = [(end, version) for end, version in self._step_ends if end >= start]
        return [(after - before, version) for (before, _), (after, version) in pairwise(ends)]

    def held(self) -> tuple[int, str]:
        """Version and digest of the live weights, read from memory."""
        answer = SimpleQueue[tuple[int, str]]()
        engine = self._engine
        self._between_steps.put(
            lambda: answer.put((engine.policy_version, engine.weights.digest()))
        )
        return answer.get()

    def _drop_all(self) -> None:
        for request_id in self._running:
            self._engine.abort(request_id)
        if self._running:
            self._engine.step()
        self._running.clear()

    def _step(self) -> None:
        while len(self._running) < self._concurrency:
            self._num_requests += 1
            self._engine.add_request(_request(self._num_requests))
            self._running.add(str(self._num_requests))
        for completion in self._engine.step():
            self._running.discard(completion.request_id)
        self._step_ends.append((time.perf_counter(), self._engine.policy_version))


def _request(number: int) -> Request:
    params = SamplingParams(max_tokens=128, ignore_eos=True)
    return Request(
        request_id=str(number),
        token_ids=tuple(_PROMPT),
        params=params,
        key=SampleKey(params.seed, number, 0),
    )
