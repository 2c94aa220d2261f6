"""Stop signals that reach a run, or every process of its job, as a terminal and a batch system send them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from rl.tracking.events import read_events
from tests.e2e.runs import ANYTHING, ROOT, command, log_of, start, steps_of, train, wait_for_step
from tests.rollout.fleet.processes import descendants, wait_for_end_of

SLOW_SCORER = """\
import subprocess, time

def score(completion, row):
    if {condition}:
        {slow}
    return float(len(completion) % 2)
"""
ENDLESS = ("trainer.num_steps=1000000", "evaluation.every_steps=0", "checkpoint.every_steps=0")


def slow_scorer(tmp_path: Path, slow: str) -> tuple[str, Path]:
    """A scorer that does `slow` once a file is there."""
    trigger = tmp_path / "slow"
    code = SLOW_SCORER.format(
        condition=f"__import__('os').path.exists({str(trigger)!r})", slow=slow
    )
    (tmp_path / "slow_scorer.py").write_text(code)
    return f"task.scorer={tmp_path / 'slow_scorer.py'}:score", trigger


@contextlib.contextmanager
def signalled(
    number: signal.Signals, is_time: Callable[[], bool], *, to_all: bool
) -> Iterator[list]:
    """Send a signal to this process, or to its children as well, as soon as it is time; yields when that was."""
    sent_at: list[float] = []

    def send() -> None:
        while not is_time():
            time.sleep(0.02)
        sent_at.append(time.monotonic())
        for pid in [*(sorted(descendants()) if to_all else ()), os.getpid()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    thread = Thread(target=send, daemon=True)
    thread.start()
    yield sent_at
    thread.join(10)


def has_steps(run_dir: Path, count: int) -> bool:
    return (run_dir / "events.jsonl").exists() and len(steps_of(run_dir)) >= count


@pytest.mark.parametrize(
    ("number", "slow", "to_all"),
    [
        (signal.SIGTERM, "time.sleep(4)", False),
        (signal.SIGTERM, "time.sleep(4)", True),
        (signal.SIGTERM, "subprocess.run(['sleep', '4'], check=True)", True),
        (signal.SIGUSR1, "time.sleep(4)", True),
        (signal.SIGHUP, "time.sleep(4)", False),
    ],
)
def test_a_signal_is_obeyed_in_seconds_whatever_scorers_do_and_blames_nobody(
    tmp_path, number, slow, to_all
):
    run_dir = tmp_path / "run"
    scorer, trigger = slow_scorer(tmp_path, slow)
    if number == signal.SIGHUP:
        signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored, and stays so

    def is_scoring_slowly() -> bool:
        if not has_steps(run_dir, 2):
            return False
        if not trigger.exists():
            trigger.touch()
            time.sleep(1.0)
        return True

    with signalled(number, is_scoring_slowly, to_all=to_all) as sent_at:
        output = train(run_dir, *ENDLESS, scorer, code=130)
    assert time.monotonic() - sent_at[0] < 10, (
        "16 scores of 4 s each, one after another, were to come"
    )
    last = read_events(run_dir / "events.jsonl")[-1]
    assert (last["status"], last["signal"], last["exit_code"]) == ("interrupted", number.name, 130)
    latest = int((run_dir / "weights" / "LATEST").read_text().strip().removeprefix("v"))
    assert latest == steps_of(run_dir)[-1]["step"] == last["policy_version"]
    assert f"Stopped by {number.name} after step {latest}" in output
    assert f"resume_from={run_dir} continues from step {latest}" in output.replace("\n", "")
    assert "could not be scored" not in output


def test_a_signal_in_start_up_is_one_line_and_leaves_the_directory_usable(tmp_path, caplog):
    run_dir = tmp_path / "run"
    with signalled(signal.SIGTERM, run_dir.exists, to_all=True):
        output = train(run_dir, *ENDLESS, code=130)
    assert "Traceback" not in output
    assert "stopped by SIGTERM before the first step" in caplog.text
    assert not run_dir.exists()


def test_a_run_that_is_told_to_stop_in_its_first_evaluation_leaves_its_directory_usable(tmp_path):
    run_dir = tmp_path / "run"
    scorer, trigger = slow_scorer(tmp_path, "time.sleep(2)")
    trigger.touch()

    def has_begun() -> bool:
        return (run_dir / "events.jsonl").exists() and bool(read_events(run_dir / "events.jsonl"))

    with signalled(signal.SIGTERM, has_begun, to_all=False):
        output = train(run_dir, scorer, code=130)
    assert "nothing was trained" in output
    train(run_dir, ANYTHING, "trainer.num_steps=1", "evaluation.every_steps=0")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 1.5, 3.0])
def test_a_signal_while_python_still_imports_is_one_line(tmp_path, seconds):
    process = subprocess.Popen(
        [sys.executable, *command(tmp_path / "run", *ENDLESS)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert output.replace("\n", " ").lower().count("stopped by sigterm") == 1, output


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [("fleet=ray",), ("trainer.num_processes=2", "checkpoint.every_steps=1")],
    ids=["workers", "ranks"],
)
def test_a_job_of_many_processes_that_is_told_to_stop_blames_none_of_them(tmp_path, overrides):
    run_dir = tmp_path / "run"
    before = descendants()
    run = start(run_dir, *ENDLESS, ANYTHING, *overrides)
    wait_for_step(run_dir, 2)
    job = descendants() - before
    for pid in sorted(job):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    assert run.wait(60) == 130
    log = log_of(run_dir).read_text()
    assert "Stopped by SIGTERM after step" in log
    assert "error:" not in log
    last = read_events(run_dir / "events.jsonl")[-1]
    assert (last["status"], last["exit_code"]) == ("interrupted", 130)
    assert (run_dir / "weights" / "LATEST").exists()
    assert not wait_for_end_of(job)
