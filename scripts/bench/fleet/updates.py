"""Times updates of the weights: from a trainer's tensors to engines in other processes, which decode meanwhile."""

import multiprocessing
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from rollout.config import EngineConfig, ModelConfig
from rollout.models.checkpoint import load_decoder, torch_dtype
from rollout.models.sources import resolve_model
from rollout.weights.transport.sender import CollectiveSender
from rollout.weights.update import make_update
from scripts.bench.fleet.receiving_engine import serve

__all__ = ["measure_updates"]

_START_SECONDS = 300.0
_UNDISTURBED_SECONDS = 0.5


def measure_updates(
    model: ModelConfig,
    engine: EngineConfig,
    *,
    num_receivers: int,
    concurrency: int,
    num_threads: int,
    repeats: int,
    bucket_mb: float,
) -> dict[str, Any]:
    """Publish `repeats` versions to all receivers, after two versions that are not timed.

    Args:
        model: model whose weights are sent.
        engine: engine config of each receiver.
        num_receivers: processes with an engine each.
        concurrency: requests that each engine decodes all the time; 0 leaves engines idle.
        num_threads: threads of each receiver.
        repeats: timed versions.
        bucket_mb: bucket size of the transport, in MB.

    Returns:
        Medians over the repeats, of the slowest receiver: seconds to digest, to stage, to verify, and from publish to commit; ms
        of the commit. For engines that decode also the ms from the end of a step to the end of the next: median and longest
        before the update, longest while weights are staged, verified and packed, and the first two steps with the new weights.
        With `engine.on_update=keep` these two are like any other; otherwise they compute prompts again.

    Raises:
        RuntimeError: a receiver does not hold what was sent.
    """
    with ExitStack() as stack:
        receivers = [
            _Receiver(model, engine, concurrency, num_threads) for _ in range(num_receivers)
        ]
        for receiver in receivers:
            stack.callback(receiver.stop)
        sender = CollectiveSender(bucket_mb=bucket_mb)
        stack.callback(sender.leave)
        dtype = torch_dtype(model.dtype, "cpu")
        decoder = load_decoder(resolve_model(model), dtype=dtype)
        for receiver in receivers:
            receiver.end(_START_SECONDS)
        for rank, receiver in enumerate(receivers, start=1):
            receiver.begin("join", sender.address, rank, num_receivers + 1, 0)
        sender.rebuild(num_receivers, 0)
        _ends(receivers)
        weights = [(name, tensor.detach()) for name, tensor in decoder.hf_tensors()]
        timed = _timed_updates(sender, receivers, weights, repeats)
        num_bytes = sum(tensor.nbytes for _, tensor in weights)
    return {
        "measures": "weight_update",
        "dtype": str(dtype).removeprefix("torch."),
        "receivers": num_receivers,
        "concurrency": concurrency,
        "mb": round(num_bytes / 1e6, 1),
        "bucket_mb": bucket_mb,
        "repeats": repeats,
        **_medians(timed),
    }


def _timed_updates(
    sender: CollectiveSender,
    receivers: Sequence["_Receiver"],
    weights: Sequence[tuple[str, torch.Tensor]],
    repeats: int,
) -> list[dict[str, float]]:
    """Publish `repeats` + 2 versions; returns the figures of all but the first two."""
    rows = []
    for version in range(1, repeats + 3):
        weights[-1][1].add_(0.5)  # the next version
        weights[0][1][-1, -1] += 1
        rows.append(_update(sender, receivers, version, weights))
    return rows[2:]  # each of an engine's two sets of weights was touched by then


def _medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure, and the longest time from publish to commit."""
    medians = {name: round(statistics.median(row[name] for row in rows), 4) for name in rows[0]}
    longest = max(row["publish_to_commit_seconds"] for row in rows)
    return medians | {"publish_to_commit_seconds_max": round(longest, 4)}


def _update(
    sender: CollectiveSender,
    receivers: Sequence["_Receiver"],
    version: int,
    weights: Sequence[tuple[str, torch.Tensor]],
) -> dict[str, float]:
    undisturbed = time.perf_counter()
    time.sleep(_UNDISTURBED_SECONDS)
    before = _asks(receivers, "steps_since", undisturbed)
    start = time.perf_counter()
    update = make_update(version, weights)
    digested = time.perf_counter()
    for receiver in receivers:
        receiver.begin("receive", update.manifest)
    sender.send(update)
    sent = time.perf_counter()
    received = _ends(receivers)
    commits = _asks(receivers, "commit")
    committed = time.perf_counter()
    during = _asks(receivers, "steps_since", start)
    for held in _asks(receivers, "held"):
        if held != (version, update.manifest.digest):
            raise RuntimeError(
                f"a receiver holds {held}, not version {version}: nothing is reported"
            )
    row = {
        "digest_seconds": digested - start,
        "send_seconds": sent - digested,
        "stage_seconds": max(times["stage"] for times in received),
        "verify_seconds": max(times["verify"] for times in received),
        "publish_to_commit_seconds": committed - start,
        "commit_ms": max(commits) * 1e3,
    }
    if all(before) and all(during):
        old = [s for steps in during for s, behind in steps if behind < version]
        new = [s for steps in during for s, behind in steps if behind == version]
        undisturbed_steps = [s for steps in before for s, _ in steps]
        row["step_ms"] = statistics.median(undisturbed_steps) * 1e3
        row["longest_step_undisturbed_ms"] = max(undisturbed_steps) * 1e3
        row["longest_step_staging_ms"] = max(old, default=0.0) * 1e3
        row["longest_step_new_ms"] = max(new) * 1e3
    return row


class _Receiver:
    """A process that serves one engine, and our end of its pipe."""

    def __init__(
        self, model: ModelConfig, engine: EngineConfig, concurrency: int, num_threads: int
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        args = (theirs, model, engine, concurrency, num_threads)
        self._process = context.Process(target=serve, args=args, daemon=True)
        self._process.start()
        theirs.close()

    def begin(self, call: str, *args: Any) -> None:
        self._pipe.send((call, args))

    def end(self, timeout_seconds: float = 60.0) -> Any:
        """Return the result of the call.

        Raises:
            RuntimeError: there was no result in time.
            EOFError: the process ended and has said why.
        """
        if not self._pipe.poll(timeout_seconds):
            raise RuntimeError(f"a receiver did not answer within {timeout_seconds:g} s")
        return self._pipe.recv()

    def stop(self) -> None:
        self._process.kill()
        self._process.join()


def _asks(receivers: Sequence[_Receiver], call: str, *args: Any) -> list[Any]:
    for receiver in receivers:
        receiver.begin(call, *args)
    return _ends(receivers)


def _ends(receivers: Sequence[_Receiver]) -> list[Any]:
    return [receiver.end() for receiver in receivers]
