"""Receivers in processes of their own, driven by the test over a pipe; a model small enough to send in no time."""

import multiprocessing
import os
import signal
import time
from typing import Any

import torch

from rollout.weights.staging import WeightReceiver
from rollout.weights.transport.member import TransferLimits
from rollout.weights.transport.receiver import CollectiveReceiver
from rollout.weights.transport.rendezvous import BroadcastGroup
from tests.rollout.weights.tensor_set import TensorSet

LIMITS = TransferLimits(join_seconds=60.0, floor_seconds=60.0)
"""Limits so long that tests without lost members never reach them."""
SHORT_LIMITS = TransferLimits(join_seconds=60.0, floor_seconds=3.0, report_seconds=2.0)
BUCKET_MB = 0.004

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "rollout.weights.transport.receiver"])


def weights_of(version: int, *, rows: int = 90) -> dict[str, torch.Tensor]:
    """Larger and smaller than a bucket, of four types."""
    return {
        "embed": (torch.arange(100.0 * rows).view(rows, 100) + version).bfloat16(),
        "scale": torch.tensor(0.5 * version),
        "q": torch.arange(3.0 * 500).view(500, 3) * version,
        "q_int8": (torch.arange(777) * (version + 3)).to(torch.int8),
        "norm": torch.full((33,), 1.0 + version).bfloat16(),
        "fp8": (torch.arange(130.0) - version).to(torch.float8_e4m3fn),
    }


class Model:
    """Live weights of version 0 and shadows; `embed` is a column range, all else contiguous."""

    def __init__(self, *, rows: int = 90) -> None:
        live, shadow = _side(rows), _side(rows)
        self.receiver = WeightReceiver(TensorSet(live), TensorSet(shadow), version=0)


def _side(rows: int) -> dict[str, torch.Tensor]:
    weights = weights_of(0, rows=rows)
    wide = torch.zeros(rows, 120, dtype=torch.bfloat16)
    wide[:, 5:105] = weights["embed"]
    return weights | {"embed": wide[:, 5:105]}


class Worker:
    """Calls go to the process's `CollectiveReceiver` (`join`, `receive`, `leave`) or its `WeightReceiver` (all else)."""

    def __init__(self, *, rows: int = 90, limits: TransferLimits = LIMITS) -> None:
        self._pipe, theirs = _context.Pipe()
        self.process = _context.Process(target=_serve, args=(theirs, rows, limits), daemon=True)
        self.process.start()
        theirs.close()

    def begin(self, call: str, *args: Any) -> None:
        self._pipe.send((call, args))

    def end(self, seconds: float = 60.0) -> Any:
        """Return the result of the call, or raise its error."""
        assert self._pipe.poll(seconds), "the worker hangs"
        value, error = self._pipe.recv()
        if error is not None:
            raise error
        return value

    def __call__(self, call: str, *args: Any) -> Any:
        self.begin(call, *args)
        return self.end()

    def kill(self, signum: int = signal.SIGKILL) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signum)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def _serve(pipe: Any, rows: int, limits: TransferLimits) -> None:
    torch.set_num_threads(1)
    model, receiver = Model(rows=rows), CollectiveReceiver(limits=limits)
    while True:
        call, args = pipe.recv()
        try:
            if call == "receive":
                value = receiver.receive(*args, model.receiver)
            elif call == "spoil":
                value = _spoil(*args)
            else:
                owner = receiver if hasattr(receiver, call) else model.receiver
                value = getattr(owner, call)
                value = value(*args) if callable(value) else value
            pipe.send((value, None))
        except Exception as error:  # noqa: BLE001 - a process boundary: the test raises it
            pipe.send((None, error))


def _spoil(how: str, at: int) -> None:
    """Inject a fault once `at` more buckets have arrived: "flip" a bit, "kill" or "stop" this process, or "wait"."""
    begin, wait_oldest = BroadcastGroup.begin, BroadcastGroup.wait_oldest
    buckets: list[torch.Tensor] = []
    num_arrived = 0

    def recording_begin(self: BroadcastGroup, flat: torch.Tensor, deadline: float) -> None:
        buckets.append(flat)
        begin(self, flat, deadline)

    def spoiled_wait(self: BroadcastGroup, deadline: float) -> None:
        nonlocal num_arrived
        wait_oldest(self, deadline)
        num_arrived += 1
        if num_arrived != at:
            return
        match how:
            case "flip":
                buckets[at - 1][17] ^= 1
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "wait":
                time.sleep(1.0)

    BroadcastGroup.begin, BroadcastGroup.wait_oldest = recording_begin, spoiled_wait
