"""A worker around an engine of its own."""

from rollout.config import DrafterKind, SpeculationConfig
from rollout.fleet.inline import InlineFleet
from rollout.fleet.workers.worker import Worker
from tests.rollout.engine.engines import make_engine, mixed_requests, run

SUFFIX = SpeculationConfig(drafter=DrafterKind.suffix)


def test_it_takes_up_the_drafts_that_another_engine_left(llama):
    before = make_engine(llama, speculation=SUFFIX)
    run(before, mixed_requests())
    saved = InlineFleet(before).state_dict()["speculation"]
    assert saved["SuffixDrafter"]["rollouts"]
    worker = Worker(make_engine(llama, speculation=SUFFIX))
    worker.restore(saved)
    assert InlineFleet(worker.engine).state_dict()["speculation"] == saved


def test_without_drafts_there_is_nothing_to_take_up(llama):
    worker = Worker(make_engine(llama))
    worker.restore({"SuffixDrafter": {"rollouts": [[[1], 0, [2, 3]]]}})
    assert InlineFleet(worker.engine).state_dict() == {}


def test_it_counts_the_seconds_in_which_it_computes_and_no_others(llama):
    ticks = iter(range(1000))
    worker = Worker(make_engine(llama), clock=lambda: float(next(ticks)), sleep=lambda _: None)
    worker.turn()
    assert worker.report().busy_seconds == 0
    worker.submit(mixed_requests())
    num_turns = 0
    while worker.has_unfinished:
        worker.turn()
        num_turns += 1
    assert (
        worker.report().busy_seconds == 2 * num_turns
    )  # of the three looks at the clock in a turn
