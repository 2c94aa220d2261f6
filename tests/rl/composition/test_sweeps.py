"""Sweeps: named after what differs, each run in a directory of its own."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rl.composition.sweeps import check_directories, name_of, place_run, runs_of

SWEEP = ["model=tiny", "trainer.learning_rate=1e-3,2e-3", "seed=range(0,2)", "run_dir=x/${seed}"]


def test_runs_are_every_combination_with_what_is_fixed_in_each():
    runs = runs_of(SWEEP)
    assert [run[1:3] for run in runs] == [
        ["trainer.learning_rate=0.001", "seed=0"],
        ["trainer.learning_rate=0.001", "seed=1"],
        ["trainer.learning_rate=0.002", "seed=0"],
        ["trainer.learning_rate=0.002", "seed=1"],
    ]
    assert all(run[0] == "model=tiny" for run in runs)


def test_a_run_is_named_after_what_differs_and_not_after_what_is_fixed():
    names = [name_of(run, SWEEP) for run in runs_of(SWEEP)]
    assert names[1] == "learning_rate=0.001,seed=1"
    assert len(set(names)) == 4
    assert name_of(runs_of(SWEEP)[2], SWEEP, without=["seed"]) == "learning_rate=0.002"


def test_keys_with_the_same_last_part_are_named_whole_and_no_name_leaves_its_directory():
    sweep = ["task.seed=1,2", "seed=1,2", "model.path=/data/a,../b"]
    assert name_of(runs_of(sweep)[-1], sweep) == "task.seed=2,seed=2,path=.._b"


def test_what_another_sweeper_chooses_differs_too():
    assert name_of(["model=tiny", "seed=7"], ["model=tiny", "hydra/sweeper=x"]) == "seed=7"


def test_a_run_gets_a_directory_and_a_group_only_where_it_has_none():
    sweep = ["seed=0,1", "group_size=2,4"]
    cfg = OmegaConf.create({"run_dir": "", "tracking": {"wandb": {"group": ""}}})
    assert place_run(cfg, runs_of(sweep)[3], sweep, Path("s")) == "seed=1,group_size=4"
    assert (cfg.run_dir, cfg.tracking.wandb.group) == ("s/seed=1,group_size=4", "group_size=4")
    cfg = OmegaConf.create({"run_dir": "own", "tracking": {"wandb": {"group": "mine"}}})
    place_run(cfg, runs_of(sweep)[0], sweep, Path("s"))
    assert (cfg.run_dir, cfg.tracking.wandb.group) == ("own", "mine")


def test_two_runs_may_not_share_a_directory():
    check_directories(["a/0", "a/1"], [["seed=0"], ["seed=1"]])
    with pytest.raises(ValueError, match=r"2 of 3 runs of the sweep have the same directory, a/b"):
        check_directories(["a/b", "a/./b", "c"], [[], [], []])
