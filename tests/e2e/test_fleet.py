"""Whole runs of the tiny model over workers of their own, as a user starts them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from rl.runs.checkpoint import load_checkpoint
from tests.e2e.runs import (
    ANYTHING,
    assert_same_weights,
    log_of,
    start,
    steps_of,
    train,
    wait_for_step,
    wait_until,
)
from tests.real_model import skip_without_real_model
from tests.rollout.fleet.processes import ProcessesSince, descendants, wait_for_end_of

pytestmark = pytest.mark.slow


def rewards_of(run_dir) -> list[float]:
    return [row["reward/mean"] for row in steps_of(run_dir)]


@pytest.mark.parametrize(
    "model",
    [("model=tiny",), ("model=smollm2_135m", "trainer.learning_rate=2e-5")],
    ids=["tiny", "smollm2"],
)
def test_two_workers_train_bitwise_the_weights_of_the_run_in_one_process(tmp_path, model):
    if "model=smollm2_135m" in model:
        skip_without_real_model()
    inline, ray = tmp_path / "inline", tmp_path / "ray"
    overrides = (*model, ANYTHING, "trainer.num_steps=10", "evaluation.every_steps=0")
    train(inline, *overrides)
    before = descendants()
    train(ray, *overrides, "fleet=ray")
    assert_same_weights(inline, ray, 10)
    assert rewards_of(inline) == rewards_of(ray)
    rows = steps_of(ray)
    assert all(row["optimizer/grad_norm"] > 0 for row in rows)
    assert all(row["mismatch/logprob_difference_max"] == 0.0 for row in rows)
    assert not wait_for_end_of(descendants() - before)


def test_drafts_of_workers_are_in_checkpoints_and_a_run_goes_on_from_them_with_another_number_of_workers(
    tmp_path,
):
    inline, ray = tmp_path / "inline", tmp_path / "ray"
    speculates = ("engine.speculation.drafter=suffix", "trainer.num_steps=2")
    train(inline, *speculates)
    train(ray, *speculates, "fleet=ray")
    assert_same_weights(inline, ray, 2)

    def history(run_dir):
        return load_checkpoint(run_dir).fleet_state["speculation"]["SuffixDrafter"]["rollouts"]

    kept = sorted(history(ray))
    assert kept == sorted(history(inline))
    assert kept
    resumed = tmp_path / "resumed"
    more = (*speculates, "trainer.num_steps=3", f"resume_from={ray}")
    train(resumed, *more, "fleet=ray", "fleet.num_workers=1")
    again = history(resumed)
    assert len(again) > len(kept)
    assert all(rollout in again for rollout in kept)


def test_a_run_in_which_everything_goes_wrong_trains_the_weights_of_one_in_which_nothing_does(
    tmp_path,
):
    calm, chaos = tmp_path / "calm", tmp_path / "chaos"
    train(calm, ANYTHING, "trainer.num_steps=6")
    train(chaos, ANYTHING, "debug=chaos")
    assert_same_weights(calm, chaos, 6)
    assert rewards_of(calm) == rewards_of(chaos)
    assert sum(row["fleet/replaced_workers"] for row in steps_of(chaos)) >= 3


# --- what is left behind: nothing

RAISING = "task.scorer=tests/e2e/raising_scorer.py:score"
LOST = ("fleet.max_replacements=0", "fleet.faults=[{kind: kill_decoding, worker: 0, after: 3}]")


@pytest.fixture
def started() -> Iterator[ProcessesSince]:
    with ProcessesSince() as processes:
        yield processes


@pytest.mark.parametrize(
    ("overrides", "code"), [((), 0), ((RAISING,), 2), (LOST, 1)], ids=["done", "scorer", "workers"]
)
def test_nothing_is_left_of_a_run_that_ends_or_fails(tmp_path, started, overrides, code):
    process = start(tmp_path / "run", "trainer.num_steps=2", "fleet=ray", *overrides)
    assert process.wait(200) == code, log_of(tmp_path / "run").read_text()
    assert started.left() == []


@pytest.mark.parametrize("times", [1, 2])
def test_nothing_is_left_of_a_run_ended_by_ctrl_c(tmp_path, started, times):
    run_dir = tmp_path / "run"
    process = start(run_dir, "trainer.num_steps=1000", "fleet=ray")
    wait_for_step(run_dir, 2)
    for _ in range(times):
        time.sleep(0.2)  # else two of them are one
        os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130, log_of(run_dir).read_text()
    assert started.left() == []


@pytest.mark.parametrize("name", ["gcs_server", "raylet", "ray::"])
def test_nothing_is_left_of_a_run_interrupted_while_its_fleet_starts(tmp_path, started, name):
    """Its workers are `ray::` until they have loaded."""
    run_dir = tmp_path / "run"
    process = start(run_dir, "trainer.num_steps=1000", "fleet=ray")
    wait_until(run_dir, lambda: started.has(name))
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130, log_of(run_dir).read_text()
    assert started.left() == []


def test_nothing_is_left_of_a_run_that_is_killed(tmp_path, started):
    run_dir = tmp_path / "run"
    process = start(run_dir, "trainer.num_steps=1000", "fleet=ray")
    wait_for_step(run_dir, 2)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    # unattended, Ray's own agents look for its other processes for a minute before they follow them
    assert started.left(seconds=120) == []


def test_runs_that_end_fail_or_are_interrupted_leave_a_cluster_as_they_found_it(tmp_path):
    from ray.cluster_utils import Cluster

    def ray_status() -> str:
        command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address"]
        return subprocess.run(
            [*command, cluster.address], capture_output=True, text=True, check=True
        ).stdout

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False}
    )
    try:
        fleet = ("fleet=ray", f"fleet.address={cluster.address}")
        for name, overrides, code in (
            ("done", (), 0),
            ("scorer", (RAISING,), 2),
            ("ctrl-c", (), 130),
        ):
            num_steps = 1000 if name == "ctrl-c" else 2
            run_dir = tmp_path / name
            process = start(run_dir, f"trainer.num_steps={num_steps}", *fleet, *overrides)
            if name == "ctrl-c":
                wait_for_step(run_dir, 1)
                assert "2.0/4.0 CPU" in ray_status()
                os.killpg(process.pid, signal.SIGINT)
            assert process.wait(200) == code, log_of(run_dir).read_text()
            wait_until(run_dir, lambda: "0.0/4.0 CPU" in ray_status(), seconds=30)
    finally:
        cluster.shutdown()


def test_a_trainer_killed_under_a_living_cluster_goes_on_in_it_as_if_it_had_not_been(tmp_path):
    from ray.cluster_utils import Cluster

    whole, killed, resumed = (tmp_path / name for name in ("whole", "killed", "resumed"))
    train(whole, "trainer.num_steps=6")
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False}
    )
    try:
        fleet = ("fleet=ray", f"fleet.address={cluster.address}")
        process = start(killed, "trainer.num_steps=1000", "checkpoint.every_steps=1", *fleet)
        wait_for_step(killed, 3)
        process.kill()
        process.wait(60)
        # in a process of its own, as a user has it: behind another Ray in this one its actors are cancelled
        again = start(resumed, "trainer.num_steps=6", f"resume_from={killed}", *fleet)
        assert again.wait(120) == 0, log_of(resumed)
    finally:
        cluster.shutdown()
    assert_same_weights(whole, resumed, 6)
