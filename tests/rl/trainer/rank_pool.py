"""Two trainer processes on this machine that are kept for many tests: starting them takes seconds, a call none."""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from rl.trainer.ranks.group import Ranks, join_ranks

_LIMIT_SECONDS = 60


class RankPool:
    """`pool(function, *args)` calls `function(ranks, *args)` on every rank and returns what each returned.

    An error on one of them, which the others may wait for, ends all; the next call starts new ones.
    """

    def __init__(self, count: int = 2) -> None:
        self._count = count
        self._ends: list[Connection] = []
        self._processes: list[Any] = []

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        if not self._processes:
            self._start()
        for end in self._ends:
            end.send((function, args))
        answers: dict[int, Any] = {}
        while len(answers) < self._count:
            waiting = [end for rank, end in enumerate(self._ends) if rank not in answers]
            ready = wait(waiting, timeout=_LIMIT_SECONDS)
            if not ready:
                self.close()
                raise TimeoutError(f"ranks {sorted(answers)} answered, the others did not")
            for end in ready:
                error, answers[self._ends.index(end)] = end.recv()
                if error:
                    self.close()
                    raise AssertionError(error)
        return [answers[rank] for rank in range(self._count)]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._ends = [], []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        store = f"{tempfile.mkdtemp()}/store"
        for rank in range(self._count):
            ours, theirs = context.Pipe()
            arguments = (rank, self._count, store, theirs)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)


def _serve(rank: int, count: int, store: str, end: Connection) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(1)
    with join_ranks("cpu", init_method=f"file://{store}") as ranks:
        while True:
            function, args = end.recv()
            end.send(_answer(function, ranks, args))


def _answer(function: Callable[..., Any], ranks: Ranks, args: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return "", function(ranks, *args)
    except Exception:  # noqa: BLE001 - the caller raises it
        return f"rank {ranks.rank}: {traceback.format_exc()}", None
