"""What is said of runs of the same work at several staleness; and such runs themselves, of the tiny model in one process."""

import pytest

from scripts.bench.fleet.asynchrony import measure_asynchrony, summarize
from tests.test_configs import load

WORK = ("model=tiny", "num_prompts_per_step=2", "group_size=2", "sampling.max_tokens=4")
SMALL = (*WORK, "trainer.num_steps=3", "reward.num_workers=1", "task.num_held_out=8")


def step(seconds: float, *, busy: float, waited: float, **metrics: float) -> dict[str, float]:
    return {
        "seconds/step": seconds,
        "seconds/rollout": waited,
        "seconds/score_wait": 0.5,
        "fleet/busy_seconds": busy,
        "rollout/num_tokens": 100,
        **metrics,
    }


def test_a_run_is_summed_over_its_steps_but_the_first_and_runs_are_compared_by_their_median():
    first = step(90.0, busy=0.0, waited=80.0)
    runs = [
        [first, step(4.0, busy=1.0, waited=2.0), step(6.0, busy=4.0, waited=3.0)],
        [first, step(8.0, busy=8.0, waited=1.0), step(8.0, busy=8.0, waited=1.0)],
        [first, step(6.0, busy=3.0, waited=2.0), step(6.0, busy=3.0, waited=2.0)],
    ]
    summary = summarize(runs)
    assert (summary["steps"], summary["repeats"]) == (2, 3)
    seconds = [summary[f"seconds_per_step{suffix}"] for suffix in ("_min", "", "_max")]
    assert seconds == [5.0, 6.0, 8.0]
    assert summary["idle_share"] == 0.5
    assert summary["seconds_waited"] == 2.5
    assert summary["tokens_per_second"] == pytest.approx(100 / 6, abs=1e-4)
    assert "staleness" not in summary


def test_staleness_stands_beside_what_was_predicted_in_the_steps_that_have_a_prediction():
    stale = {"staleness/mean": 0.5, "staleness/max": 1}
    steps = [
        step(1.0, busy=1.0, waited=0.0),
        step(1.0, busy=1.0, waited=0.0, **stale),
        step(1.0, busy=1.0, waited=0.0, **stale, **{"staleness/predicted": 0.75}),
    ]
    summary = summarize([steps])
    expected = {"staleness": 0.5, "staleness_max": 1, "staleness_predicted": 0.75}
    assert {name: summary[name] for name in expected} == expected


def test_every_staleness_does_the_same_work(tmp_path):
    overrides = (*SMALL, "fleet=inline", "repeats=1", "staleness=[0,1]", f"run_dir={tmp_path}")
    sync, stale = measure_asynchrony(load(*overrides, name="bench_fleet"))
    assert (sync["max_staleness"], stale["max_staleness"]) == (0, 1)
    assert sync["tokens_per_step"] == stale["tokens_per_step"] > 0
    assert 0 < sync["idle_share"] < 1
    assert stale["staleness_max"] == 1


def test_one_step_is_too_few(tmp_path):
    config = load(*SMALL, "trainer.num_steps=1", f"run_dir={tmp_path}", name="bench_fleet")
    with pytest.raises(ValueError, match=r"trainer\.num_steps must be >= 2"):
        next(measure_asynchrony(config))
