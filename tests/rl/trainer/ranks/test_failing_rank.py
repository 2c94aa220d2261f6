"""A rank that fails ends the others, which are told who it was."""

import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from rl.trainer.ranks.group import join_ranks


def work(rank: int, store: str, end: Connection, call: str) -> None:
    """Rank 1 fails where rank 0 waits for it."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    try:
        with join_ranks("cpu", init_method=f"file://{store}") as ranks:
            if call == "check":
                ranks.check("model.path is not here" if rank else None)
            if rank == 1:
                raise KeyError("planted")
            if call == "gather":
                ranks.gather(0)
            ranks.all_reduce([torch.ones(3)])
    except BaseException as error:  # noqa: BLE001 - SystemExit, too
        notes = getattr(error, "__notes__", [])
        end.send(f"{type(error).__name__}: {error} {' '.join(notes)}")


def both(tmp_path: Path, call: str) -> list[str]:
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    processes = [
        context.Process(target=work, args=(rank, str(tmp_path / "store"), pipes[rank][1], call))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0, "still waiting for the other"
    return [ours.recv() for ours, _ in pipes]


@pytest.mark.parametrize("call", ["gather", "all_reduce"])
def test_whoever_waits_for_a_rank_that_fails_is_told_which_it_was(tmp_path, call):
    first, second = both(tmp_path, call)
    assert first.startswith("RuntimeError: rank 1 (KeyError: 'planted') failed and ended the run")
    assert second == "KeyError: 'planted' This was rank 1 of 2; it ends the others."


def test_a_mistake_that_one_rank_found_is_said_by_the_first(tmp_path):
    first, second = both(tmp_path, "check")
    assert first.startswith("ValueError: rank 1: model.path is not here")
    assert second.startswith("SystemExit: 2")
