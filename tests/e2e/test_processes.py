"""Whole runs of several processes, as torchrun starts them, and as a run starts them itself on Ray."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.e2e.runs import (
    ANYTHING,
    ROOT,
    SMALL,
    assert_same_weights,
    log_of,
    start,
    steps_of,
    train,
    wait_for_step,
    weights_of,
)
from tests.rollout.fleet.processes import descendants, wait_for_end_of


def torchrun(run_dir: Path, *overrides: str, code: int = 0, path: str = str(ROOT)) -> str:
    """Two processes of scripts/train.py, which import from `path`; returns what they printed."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "scripts/train.py", *SMALL, ANYTHING, f"run_dir={run_dir}", *overrides],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert (done.returncode == 0) == (code == 0), done.stdout
    return done.stdout


FLOAT32 = "model.dtype=float32"


@pytest.mark.slow
@pytest.mark.parametrize(
    "trainer",
    [
        (),
        ("trainer.data_parallel=fsdp2",),
        ("trainer.backend=deepspeed", "trainer.zero_stage=3"),
    ],
    ids=["ddp", "fsdp2", "zero3"],
)
def test_two_processes_train_agree_with_the_engine_and_are_resumed_by_one(tmp_path, trainer):
    evaluations = ("evaluation.every_steps=2", FLOAT32)
    output = torchrun(tmp_path / "two", *trainer, *evaluations, "trainer.num_steps=2")
    assert output.count("Held-out accuracy") == 1, "one of them speaks"
    measured = [row for row in steps_of(tmp_path / "two") if "mismatch/k3" in row]
    assert measured, "no step had a group with signal"
    assert all(row["mismatch/logprob_difference_max"] == 0.0 for row in measured)
    train(tmp_path / "one", ANYTHING, *evaluations, "trainer.num_steps=2")
    train(
        tmp_path / "resumed", ANYTHING, *evaluations, "trainer.num_steps=3",
        f"resume_from={tmp_path / 'two'}",
    )  # fmt: skip
    train(
        tmp_path / "whole", ANYTHING, *evaluations, "trainer.num_steps=3",
        f"resume_from={tmp_path / 'one'}",
    )  # fmt: skip
    for run, version in (("two", 2), ("resumed", 3)):
        other = {"two": "one", "resumed": "whole"}[run]
        first, second = weights_of(tmp_path / run, version), weights_of(tmp_path / other, version)
        for name, tensor in first.items():
            torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "trainer",
    [
        ("algorithm.num_critic_warmup_steps=1",),
        ("trainer.data_parallel=fsdp2", "trainer.ema_decay=0.9"),
        ("trainer.backend=deepspeed", "trainer.zero_stage=3"),
    ],
    ids=["ddp", "fsdp2", "zero3"],
)
def test_ppo_on_two_processes_trains_its_critic_and_is_resumed(tmp_path, trainer):
    arguments = ("algorithm=ppo", *trainer, FLOAT32, "evaluation.every_steps=0")
    run, resumed = tmp_path / "run", tmp_path / "resumed"
    torchrun(run, *arguments, "trainer.num_steps=2")
    torchrun(resumed, *arguments, "trainer.num_steps=3", f"resume_from={run}")
    rows = [*steps_of(run), *steps_of(resumed)]
    assert all("loss/value" in row for row in rows)
    assert all(row.get("mismatch/logprob_difference_max", 0.0) == 0.0 for row in rows)
    has_average = "trainer.ema_decay=0.9" in trainer
    assert (resumed / "weights" / "v3" / "ema").is_dir() == has_average


@pytest.mark.slow
def test_an_error_on_one_rank_ends_all_and_says_which(tmp_path):
    broken = tmp_path / "sitecustomize.py"
    broken.write_text(
        "import os, sys\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import rl.trainer.learn.learner as module\n"
        "    def fail(*_): raise FloatingPointError('planted')\n"
        "    module.Learner._with_advantages = fail\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "scripts/train.py", *SMALL, f"run_dir={tmp_path / 'run'}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert "FloatingPointError: planted" in done.stdout
    assert "This was rank 1 of 2; it ends the others." in done.stdout


@pytest.mark.slow
def test_a_mistake_is_one_sentence_from_one_of_them(tmp_path):
    # however late the first of them is: torchrun ends all as soon as one has ended
    slow = "import os, time\nif os.environ.get('RANK') == '0': time.sleep(3)\n"
    (tmp_path / "sitecustomize.py").write_text(slow)
    late = f"{tmp_path}:{ROOT}"
    output = torchrun(tmp_path / "run", "trainer.zero_stage=7", code=2, path=late)
    assert output.count("trainer.zero_stage must be 0, 1, 2 or 3, got 7") == 1
    output = torchrun(tmp_path / "run", "num_prompts_per_step=1", "mode=rollout_only", code=2)
    assert output.count("mode=rollout_only trains nothing: start 1 process, got 2") == 1


# --- on Ray

RAY = "trainer.num_processes=2"
LONG = (RAY, ANYTHING, "trainer.num_steps=1000", "checkpoint.every_steps=1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "trainer",
    [
        (),
        ("trainer.data_parallel=fsdp2", "fleet=ray"),
        ("trainer.backend=deepspeed", "trainer.zero_stage=3"),
    ],
    ids=["ddp", "fsdp2_and_workers", "zero3"],
)
def test_on_ray_they_train_bitwise_the_weights_of_those_that_torchrun_starts(tmp_path, trainer):
    arguments = (*trainer, FLOAT32, ANYTHING, "evaluation.every_steps=0")
    before = descendants()
    threads, variables = torch.get_num_threads(), dict(os.environ)
    output = train(tmp_path / "ray", *arguments, RAY)
    assert not wait_for_end_of(descendants() - before)
    assert (torch.get_num_threads(), dict(os.environ)) == (threads, variables)
    assert "the others are on Ray, on this machine" in output
    torchrun(tmp_path / "torchrun", *arguments)
    assert_same_weights(tmp_path / "ray", tmp_path / "torchrun", 3)
    rows = steps_of(tmp_path / "ray")
    assert any("loss/policy" in row for row in rows), "no step had a group with signal"


def rank_among(pids: set[int]) -> int:
    """The process of rank 1."""
    (rank,) = [p for p in pids if b"RankProcess" in Path(f"/proc/{p}/cmdline").read_bytes()]
    return rank


@pytest.mark.slow
@pytest.mark.parametrize("fleet", ["inline", "ray"])
def test_a_rank_that_dies_ends_the_run_in_a_sentence_that_names_it(tmp_path, fleet):
    run_dir = tmp_path / "run"
    before = descendants()
    run = start(run_dir, *LONG, f"fleet={fleet}")
    wait_for_step(run_dir, 2)
    started = descendants() - before
    os.kill(rank_among(started), signal.SIGKILL)
    assert run.wait(60) == 1
    log = log_of(run_dir).read_text()
    assert "error: rank 1 of 2 ended: its process died; resume_from=" in log.replace("\n", " ")
    assert "Traceback" not in log
    assert not wait_for_end_of(started)


@pytest.mark.slow
@pytest.mark.parametrize("fleet", ["inline", "ray"])
def test_after_ctrl_c_in_the_terminal_a_checkpoint_and_no_process_is_left(tmp_path, fleet):
    run_dir = tmp_path / "run"
    before = descendants()
    run = start(run_dir, *LONG[:-1], f"fleet={fleet}")
    wait_for_step(run_dir, 2)
    started = descendants() - before
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(60) == 130
    log = log_of(run_dir).read_text()
    assert "Stopped by SIGINT after step" in log
    assert "Traceback" not in log
    assert weights_of(run_dir, len(steps_of(run_dir)))
    assert not wait_for_end_of(started)


@pytest.mark.slow
def test_in_a_cluster_they_share_it_with_workers_and_wait_for_cores_only_so_long(tmp_path):
    from ray.cluster_utils import Cluster

    arguments = (RAY, FLOAT32, ANYTHING, "trainer.num_steps=2", "evaluation.every_steps=0")
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    try:
        address = f"fleet.address={cluster.address}"
        train(tmp_path / "run", *arguments, "fleet=ray", "fleet.num_workers=1", address)
        output = train(
            tmp_path / "large", *arguments, "trainer.num_processes=4", "fleet.start_seconds=20", address,
            code=1,
        )  # fmt: skip
    finally:
        cluster.shutdown()
    assert "1 of 4 trainer processes" in output
    assert "trainer.threads_per_process=1 cores" in output.replace("\n", " ")
    train(tmp_path / "local", *arguments)
    assert_same_weights(tmp_path / "run", tmp_path / "local", 2)
