"""Whole runs of the tiny model that begin more rollouts than they train on."""

import torch

from rl.tracking.events import read_events
from tests.e2e.runs import ANYTHING, steps_of, train, weights_of

OVERRIDES = (
    ANYTHING,
    "num_spare_rollouts=2",
    "sampling.max_tokens=48",
    "sampling.stop=[e,t,a]",  # so that lengths differ
    "trainer.num_steps=4",
)


def test_a_run_with_spare_rollouts_is_exact_repeatable_and_says_what_it_left_out(tmp_path):
    for name in "ab":
        train(tmp_path / name, *OVERRIDES, "max_staleness=1", "engine.on_update=recompute")
    first, second = (weights_of(tmp_path / name, 4) for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)
    rows = steps_of(tmp_path / "a")
    assert len(rows) == 4
    for row in rows:
        assert row["overprovision/num_begun"] == 4 * 6
        assert row["overprovision/num_aborted"] <= 4 * 2
        assert row["rollout/length_mean"] == row["overprovision/length_mean_kept"]
        assert (
            row["overprovision/length_mean_kept"] < row["overprovision/length_mean_begun_at_least"]
        )
        assert 0 < row["overprovision/wasted_token_fraction"] < 1
        assert row.get("mismatch/logprob_difference_max", 0.0) == 0.0
    assert sum(row["overprovision/num_aborted"] for row in rows) > 0
    evaluated = [
        r for r in read_events(tmp_path / "a" / "events.jsonl") if r["event"] == "evaluation"
    ]
    assert [row["evaluation/num_prompts"] for row in evaluated] == [32, 32, 32]


def test_without_spare_rollouts_nothing_is_said_of_them(tmp_path):
    train(tmp_path / "run", ANYTHING, "trainer.num_steps=1", "evaluation.every_steps=0")
    (row,) = steps_of(tmp_path / "run")
    assert not [key for key in row if key.startswith("overprovision/")]


def test_a_run_that_cannot_over_provision_says_so_before_it_begins(tmp_path):
    output = train(tmp_path / "run", "algorithm=sft", "num_spare_rollouts=1", code=2)
    assert "num_spare_rollouts must be 0 with algorithm=sft" in output
