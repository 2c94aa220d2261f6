"""Processes that are started on Ray: what each finds, and what the first is told of the others."""

import multiprocessing
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest
import torch

from rl.algorithms.grpo import GRPOConfig
from rl.config import RunMode, TrainConfig
from rl.trainer.config import DataParallel, TrainerConfig
from rl.trainer.ranks.checks import check_launch
from rl.trainer.ranks.group import join_ranks
from rl.trainer.ranks.ray_launch import RankError, start_ranks
from rollout.config import TINY, FleetConfig, ModelConfig
from rollout.ray_session import join_ray
from tests.rl.trainer.rank_work import (
    adds_up,
    dies_among_the_others,
    dies_before_it_joins,
    fails_among_the_others,
    fails_before_it_joins,
    failure_of,
)


def config(num_processes: int = 2, *, run_dir: str = "x", **fleet: object) -> TrainConfig:
    return TrainConfig(
        run_dir=run_dir,
        model=ModelConfig(path=TINY),
        algorithm=GRPOConfig(),
        trainer=TrainerConfig(num_processes=num_processes),
        fleet=FleetConfig(**fleet),  # pyrefly: ignore
    )


def test_processes_are_not_started_by_the_run_and_by_torchrun():
    message = r"num_processes must be 1 where torchrun starts the processes, got 2 beside its 4"
    with pytest.raises(ValueError, match=message):
        check_launch(config(), {"WORLD_SIZE": "4"})
    check_launch(config(1), {"WORLD_SIZE": "4"})
    check_launch(config(), {})


def test_what_two_processes_cannot_do_is_found_before_they_are_started():
    with pytest.raises(ValueError, match="trains nothing: start 1 process, got 2"):
        check_launch(replace(config(), mode=RunMode.rollout_only), {})
    sharded = TrainerConfig(num_processes=2, data_parallel=DataParallel.fsdp2)
    check_launch(replace(config(), trainer=sharded), {})


def test_an_address_where_no_cluster_is_is_said_at_once():
    with socket.socket() as own:  # a port that nobody listens at
        own.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{own.getsockname()[1]}"
        message = rf"fleet\.address must be that of a running Ray cluster, got '{address}'"
        with pytest.raises(ValueError, match=message):
            join_ray(address)


# --- on Ray


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    """One for several tests, which leave it running."""
    import ray

    assert join_ray("")
    yield
    ray.shutdown()


on_ray = pytest.mark.usefixtures("_ray")


@pytest.mark.slow
@on_ray
def test_each_is_a_rank_of_one_group_and_the_first_is_none_any_more_afterwards(tmp_path):
    threads, variables = torch.get_num_threads(), dict(os.environ)
    torch.set_num_threads(2)
    try:
        run = config(3, run_dir=str(tmp_path))
        with start_ranks(adds_up, run):
            adds_up(run)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert dict(os.environ) == variables
    found = sorted(path.read_text() for path in tmp_path.iterdir())
    assert found == [f"{rank} of 3: 6, 1 threads" for rank in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "message"),
    [
        (fails_before_it_joins, "rank 2 of 3 failed: OSError: no route to host"),
        (dies_before_it_joins, "rank 2 of 3 ended: its process died"),
        (fails_among_the_others, "rank 2 of 3 failed: FloatingPointError: planted"),
        (dies_among_the_others, "rank 2 of 3 ended: its process died"),
    ],
)
def test_the_first_does_not_wait_for_a_rank_that_is_gone_and_names_it(work, message):
    # in a process of its own: torch counts the groups that one could not join
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        assert executor.submit(failure_of, work, config(3)).result(timeout=120) == message


@pytest.mark.slow
@on_ray
def test_an_error_of_the_first_is_its_own():
    for mistake in (KeyError, RuntimeError):
        with (
            pytest.raises(mistake, match="planted") as error,
            start_ranks(adds_up, config()),
            join_ranks("cpu"),
        ):
            raise mistake("planted")
        assert not isinstance(error.value, RankError)
