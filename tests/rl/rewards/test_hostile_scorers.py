"""Whatever a scorer does to its process, every job gets its own outcome, and innocent jobs their scores."""

import random

import hostile_scorers
import pytest
from hostile_scorers import DEEDS

from rl.rewards.job import ScoreJob
from rl.rewards.outcome import OutcomeKind, ScoreOutcome
from rl.rewards.pool import ScorerPool

QUICK = (
    "child_returns",
    "child_raises",
    "child_made_in_c_returns",
    "child_writes_to_every_descriptor",
    "closes_all_and_opens_others",
    "writes_half_a_line_to_every_descriptor",
    "swaps_our_socket",
    "sends_itself_SIGTERM",
    "leaves_an_alarm_that_raises",
    "thread_exits_the_process_later",
    "forbids_open_files",
    "replaces_getpid",
)
HARMLESS = (
    "child_returns",
    "child_raises",
    "child_exits_by_system_exit",
    "parent_waits_for_child_that_returns",
    "ten_children_return",
    "child_of_child_returns",
    "child_made_in_c_returns",
    "pool_of_processes",
    "process_that_is_terminated",
    "subprocess_that_is_terminated",
    "prints_to_stdout",
    "writes_garbage_to_every_descriptor",
    "writes_half_a_line_to_every_descriptor",
    "writes_forged_replies",
    "sends_itself_SIGTERM",
    "sends_itself_SIGINT",
    "sends_itself_SIGHUP",
    "sends_itself_SIGUSR1",
    "sends_sigterm_to_its_group",
    "changes_directory",
    "fifty_threads",
    "runs_an_event_loop",
)
OWN_RESULTS = {1.0, 5.0}
"""What deeds return where it is not the row's number."""


def make_pool(num_workers: int) -> ScorerPool:
    return ScorerPool(
        hostile_scorers.score, num_workers=num_workers, time_limit_seconds=2.0, memory_limit_gb=2.0
    )


def make_job(completion: str, number: float) -> ScoreJob:
    return ScoreJob(completion=completion, row={"number": number})


def check_deed(name: str, outcome: ScoreOutcome, number: float) -> None:
    """A deed has its own number or result, or an error; never what another process or job said."""
    if name in HARMLESS:
        assert outcome.score == number, (name, outcome)
    else:
        assert outcome.kind is not OutcomeKind.SCORE or outcome.score in {number, *OWN_RESULTS}, (
            name,
            outcome,
        )


def check_between_innocent_jobs(pool: ScorerPool, name: str, number: float) -> None:
    texts = ("innocent", name, "innocent", "wait", "innocent")
    jobs = [make_job(text, number + index) for index, text in enumerate(texts)]
    outcomes = pool.submit(jobs).outcomes()
    for index, (text, outcome) in enumerate(zip(texts, outcomes, strict=True)):
        if text == name:
            check_deed(name, outcome, number + index)
        else:
            assert outcome.score == number + index, (name, text, outcome)


@pytest.fixture(scope="module")
def pool():
    with make_pool(1) as pool:
        yield pool


@pytest.mark.parametrize("name", QUICK)
def test_a_deed_changes_no_other_outcome(pool, name):
    check_between_innocent_jobs(pool, name, 1000.0)


@pytest.mark.slow
def test_a_hundred_hostile_or_odd_scorers_change_no_other_outcome(pool):
    assert len(DEEDS) >= 100
    for index, name in enumerate(DEEDS):
        check_between_innocent_jobs(pool, name, 1000.0 + 10 * index)


@pytest.mark.slow
def test_hostile_scorers_beside_one_another_change_no_other_outcome():
    names = [name for name in DEEDS for _ in range(2)] + ["innocent"] * 200
    random.Random(5).shuffle(names)
    with make_pool(4) as pool:
        outcomes = pool.submit([make_job(n, 1000.0 + i) for i, n in enumerate(names)]).outcomes()
    for index, (name, outcome) in enumerate(zip(names, outcomes, strict=True)):
        if name == "innocent":
            assert outcome.score == 1000.0 + index, (name, outcome)
        else:
            check_deed(name, outcome, 1000.0 + index)
