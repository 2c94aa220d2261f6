"""The pool against scorers that raise, hang, lie, crash and hoard. Slow only by the start of its processes."""

import os
import pickle
import subprocess
import sys
import textwrap
import time
from collections import Counter
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
import sample_scorers

from rl.rewards.arithmetic import score_arithmetic
from rl.rewards.outcome import OutcomeKind, ScoreOutcome
from rl.rewards.pool import ScorerPool
from rl.rewards.processes.process import ScoreJob
from rl.rewards.scorer import Scorer, load_scorer

ERROR, TIMEOUT = OutcomeKind.ERROR, OutcomeKind.TIMEOUT


def make_pool(
    scorer: Scorer = sample_scorers.score, *, num_workers: int = 1, seconds: float = 30.0
):
    return ScorerPool(
        scorer, num_workers=num_workers, time_limit_seconds=seconds, memory_limit_gb=0.5
    )


def jobs(*completions: str) -> list[ScoreJob]:
    return [ScoreJob(completion=completion, row={}) for completion in completions]


def scores(outcomes: list[ScoreOutcome]) -> list[float | None]:
    return [outcome.score for outcome in outcomes]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_dead(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def pool():
    with make_pool() as pool:
        yield pool


def test_outcomes_come_in_the_order_of_the_jobs():
    numbers = [float(number) for number in range(133)]
    with make_pool(num_workers=2) as pool:
        ticket = pool.submit(jobs(*map(str, numbers)))
        assert scores(ticket.outcomes()) == numbers
        assert ticket.done()
        assert scores(ticket.outcomes()) == numbers  # may be asked again


def test_an_empty_ticket_is_done(pool):
    ticket = pool.submit([])
    assert ticket.done()
    assert ticket.outcomes() == []


def test_a_ticket_is_not_done_before_its_last_job(pool):
    ticket = pool.submit(jobs("1", "sleep 0.3"))
    assert not ticket.done()
    assert scores(ticket.outcomes()) == [1.0, 1.0]


def test_several_workers_score_at_the_same_time():
    with make_pool(num_workers=2) as pool:
        pids = scores(pool.submit(jobs(*["pid after 0.2"] * 2)).outcomes())
    assert len(set(pids)) == 2


def test_jobs_that_come_together_are_shared_out_one_by_one():
    with make_pool(num_workers=4) as pool:
        pids = scores(pool.submit(jobs(*["pid after 0.1"] * 16)).outcomes())
    counts = Counter(pids).values()
    assert len(counts) == 4
    assert max(counts) <= 6  # 4, but for a machine under load


def test_a_scorer_that_raises_is_an_error_with_type_and_message(pool):
    outcomes = pool.submit(jobs("1", "raise", "2", "sys.exit", "3")).outcomes()
    assert scores(outcomes) == [1.0, None, 2.0, None, 3.0]
    assert outcomes[1].kind is outcomes[3].kind is ERROR
    assert outcomes[1].message == "KeyError: 'no such unit test'"
    assert outcomes[3].message == "SystemExit: 0"


@pytest.mark.parametrize(
    ("value", "shown"),
    [("nan", "nan"), ("inf", "inf"), ("none", "None"), ("text", "'1.0'"), ("complex", "1j")],
)
def test_what_is_not_a_finite_number_is_an_error_that_names_it(pool, value, shown):
    (outcome,) = pool.submit(jobs(f"return {value}")).outcomes()
    assert outcome.kind is ERROR
    assert outcome.score is None
    assert outcome.message == f"ValueError: a scorer must return a finite number, got {shown}"


def test_an_integer_too_large_for_a_float_is_an_error(pool):
    (outcome,) = pool.submit(jobs("return huge")).outcomes()
    assert outcome.kind is ERROR
    assert "must lie in [-1e+15, 1e+15]" in outcome.message


def test_booleans_and_integers_are_scores(pool):
    outcomes = pool.submit(jobs("return true", "return int")).outcomes()
    assert scores(outcomes) == [1.0, 3.0]
    assert all(type(outcome.score) is float for outcome in outcomes)


def test_what_a_scorer_prints_does_not_disturb_the_pool(pool):
    assert scores(pool.submit(jobs("print", "2")).outcomes()) == [1.0, 2.0]


@pytest.mark.parametrize("misdeed", ["hang", "spin"])
def test_a_hang_is_a_timeout_and_costs_its_siblings_nothing(misdeed):
    with make_pool(seconds=1.0) as pool:
        before, hang, after = pool.submit(jobs("pid", misdeed, "pid")).outcomes()
    assert (hang.kind, hang.score) == (TIMEOUT, None)
    assert hang.message == "killed after reward.time_limit_seconds=1.0"
    assert before.kind is after.kind is OutcomeKind.SCORE
    assert before.score != after.score  # a fresh process


def test_the_time_limit_is_of_a_job_not_of_its_ticket():
    with make_pool(seconds=1.0) as pool:
        assert scores(pool.submit(jobs(*["sleep 0.4"] * 3)).outcomes()) == [1.0] * 3


def test_preparing_a_scorer_is_outside_the_time_limit():
    with make_pool(sample_scorers.NeedsPreparation(), seconds=1.0) as pool:
        assert scores(pool.submit(jobs("x")).outcomes()) == [1.0]


@pytest.mark.parametrize(
    ("misdeed", "message"),
    [
        ("exit 0", "the scorer's process exited with code 0"),
        ("exit 3", "the scorer's process exited with code 3"),
        ("abort", "the scorer's process was killed by SIGABRT"),
    ],
)
def test_a_scorer_that_ends_its_process_is_an_error(pool, misdeed, message):
    outcomes = pool.submit(jobs("1", misdeed, "2")).outcomes()
    assert scores(outcomes) == [1.0, None, 2.0]
    assert (outcomes[1].kind, outcomes[1].message) == (ERROR, message)


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit holds on Linux alone")
@pytest.mark.parametrize("misdeed", ["hog", "hoard"])
def test_running_out_of_memory_is_an_error_and_leaves_the_next_job_all_of_it(pool, misdeed):
    outcomes = pool.submit(jobs("1", misdeed, "held")).outcomes()
    assert scores(outcomes) == [1.0, None, 0.0]
    assert outcomes[1].message == "MemoryError: reward.memory_limit_gb=0.5 is used up"


def test_a_process_that_dies_between_tickets_costs_no_job(pool):
    (outcome,) = pool.submit(jobs("pid")).outcomes()
    assert outcome.score is not None
    os.kill(int(outcome.score), 9)
    time.sleep(0.1)
    assert scores(pool.submit(jobs("1", "2")).outcomes()) == [1.0, 2.0]


def test_a_timeout_kills_what_the_scorer_started():
    row = {"sleep": "86399.125"}  # a duration of our own, by which to find the process
    with make_pool(seconds=1.0) as pool:
        ticket = pool.submit([ScoreJob(completion="hang with child", row=row)])
        assert ticket.outcomes()[0].kind is TIMEOUT
    listed = subprocess.run(
        ["ps", "-eo", "args"], capture_output=True, text=True, check=True
    ).stdout
    assert row["sleep"] not in listed


def test_close_ends_the_processes_and_gives_up_what_is_not_done():
    pool = make_pool(num_workers=2)
    pids = [int(pid or 0) for pid in scores(pool.submit(jobs(*["pid after 0.2"] * 2)).outcomes())]
    hanging = [pool.submit(jobs("1", "hang")) for _ in range(2)]
    waiting = pool.submit(jobs("1"))
    time.sleep(0.2)
    pool.close()
    assert not any(map(is_alive, pids))
    for ticket in hanging:
        with pytest.raises(RuntimeError, match="closed before its jobs were done"):
            ticket.outcomes()
    with pytest.raises(CancelledError):
        waiting.outcomes()
    pool.close()  # again: nothing to do


def test_an_error_inside_with_ends_the_processes():
    pid = 0
    with pytest.raises(ZeroDivisionError), make_pool() as pool:  # noqa: PT012 - the pid is needed
        pid = int(pool.submit(jobs("pid")).outcomes()[0].score or 0)
        _ = 1 / 0
    assert pid
    assert not is_alive(pid)


def test_ctrl_c_reaches_no_worker(pool):
    # it goes to the foreground process group, so a group of one's own is enough
    pid, pgid = scores(pool.submit(jobs("pid", "pgid")).outcomes())
    assert pid == pgid
    assert pgid != os.getpgid(0)


def test_workers_end_when_their_parent_is_killed():
    script = """
        import os, time, sample_scorers
        from rl.rewards.pool import ScorerPool
        from rl.rewards.processes.process import ScoreJob
        pool = ScorerPool(sample_scorers.score, num_workers=1, time_limit_seconds=1e3, memory_limit_gb=1)
        ticket = pool.submit([ScoreJob(completion="pid", row={})])
        print(int(ticket.outcomes()[0].score), flush=True)
        pool.submit([ScoreJob(completion="spin", row={})])
        time.sleep(0.5)  # until it spins
        os.kill(os.getpid(), 9)
    """
    killed = run_python("-c", textwrap.dedent(script))
    assert killed.returncode == -9
    wait_until_dead(int(killed.stdout))


def test_a_scorer_that_cannot_be_loaded_is_an_error_at_once():
    with pytest.raises(
        RuntimeError, match=r"could not be loaded[^$]*the grader's data are missing"
    ):
        make_pool(sample_scorers.CannotPrepare(), num_workers=2)
    with pytest.raises(RuntimeError, match=r"could not be loaded.*exited with code 5"):
        make_pool(sample_scorers.ExitsOnLoad())


def test_a_scorer_or_row_that_cannot_be_pickled_is_an_error(pool):
    with pytest.raises((pickle.PicklingError, AttributeError)):
        make_pool(lambda completion, row: 0.0)
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        pool.submit([ScoreJob(completion="1", row={"f": lambda: 0})]).outcomes()
    assert scores(pool.submit(jobs("1")).outcomes()) == [1.0]


def test_a_users_file_is_imported_in_the_worker(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("import os\ndef score(completion, row):\n    return os.getpid() != row['pid']")
    with make_pool(load_scorer(f"{path}:score")) as pool:
        (outcome,) = pool.submit([ScoreJob(completion="", row={"pid": os.getpid()})]).outcomes()
    assert outcome.score == 1.0


def test_scores_of_arithmetic_come_through():
    with make_pool(score_arithmetic) as pool:
        tickets = [ScoreJob(completion=text, row={"answer": "9"}) for text in ("9", "8")]
        assert scores(pool.submit(tickets).outcomes()) == [1.0, 0.0]


def test_a_worker_does_not_import_the_main_script_and_what_it_imports(tmp_path):
    script = """
        import wave  # stands for torch: nothing else here imports it
        import sample_scorers
        from rl.rewards.pool import ScorerPool
        from rl.rewards.processes.process import ScoreJob
        jobs = [ScoreJob(completion=f"imported {name}", row={}) for name in ("wave", "sample_scorers")]
        with ScorerPool(sample_scorers.score, num_workers=1, time_limit_seconds=9, memory_limit_gb=1) as pool:
            print([outcome.score for outcome in pool.submit(jobs).outcomes()])
    """
    (tmp_path / "train.py").write_text(textwrap.dedent(script))
    assert run_python(str(tmp_path / "train.py")).stdout.strip() == "[0.0, 1.0]"


def test_importing_the_pool_is_light():
    script = """
        import sys, rl.rewards.pool, rl.rewards.processes.worker
        print([name for name in ("torch", "transformers", "numpy", "omegaconf") if name in sys.modules])
    """
    assert run_python("-c", textwrap.dedent(script)).stdout.strip() == "[]"


def run_python(*args: str) -> subprocess.CompletedProcess[str]:
    """Runs a new interpreter that finds this folder and the repository."""
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[3])]
    return subprocess.run(
        [sys.executable, *args],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
