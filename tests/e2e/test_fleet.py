"""Whole runs of the tiny model over workers of their own, as a user starts them."""

import signal

import pytest

from tests.e2e.runs import assert_same_weights, start, steps_of, train, wait_for_step
from tests.rollout.fleet.processes import descendants, wait_for_end_of

pytestmark = pytest.mark.slow


def rewards_of(run_dir) -> list[float]:
    return [row["reward/mean"] for row in steps_of(run_dir)]


def test_two_workers_train_bitwise_the_weights_of_the_run_in_one_process(tmp_path):
    inline, ray = tmp_path / "inline", tmp_path / "ray"
    train(inline, "trainer.num_steps=10")
    before = descendants()
    train(ray, "trainer.num_steps=10", "fleet=ray")
    assert_same_weights(inline, ray, 10)
    assert rewards_of(inline) == rewards_of(ray)
    rows = steps_of(ray)
    assert all(row.get("mismatch/logprob_difference_max", 0.0) == 0.0 for row in rows)
    assert not wait_for_end_of(descendants() - before)


def test_a_run_in_which_everything_goes_wrong_trains_the_weights_of_one_in_which_nothing_does(
    tmp_path,
):
    calm, chaos = tmp_path / "calm", tmp_path / "chaos"
    train(calm, "trainer.num_steps=6")
    train(chaos, "debug=chaos")
    assert_same_weights(calm, chaos, 6)
    assert rewards_of(calm) == rewards_of(chaos)
    assert sum(row["fleet/replaced_workers"] for row in steps_of(chaos)) >= 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_run_that_is_interrupted_or_killed(tmp_path, number):
    run_dir = tmp_path / "run"
    before = descendants()
    process = start(run_dir, "trainer.num_steps=1000", "fleet=ray")
    wait_for_step(run_dir, 2)
    started = descendants() - before
    assert len(started) > 5
    process.send_signal(number)
    code = process.wait(60)
    assert code == (130 if number is signal.SIGINT else -signal.SIGKILL)
    # unattended, Ray's own agents look for its other processes for a minute before they follow them
    assert not wait_for_end_of(started, seconds=20 if number is signal.SIGINT else 120)


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
        train(resumed, "trainer.num_steps=6", f"resume_from={killed}", *fleet)
    finally:
        cluster.shutdown()
    assert_same_weights(whole, resumed, 6)
