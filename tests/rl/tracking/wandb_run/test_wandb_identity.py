from pathlib import Path

import pytest

from rl.tracking.config import WandbConfig, WandbMode
from rl.tracking.wandb_run.identity import WandbIdentity, wandb_mode


@pytest.mark.parametrize(
    ("environ", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_MODE": ""}, "offline"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_MODE": "DISABLED"}, "disabled"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_DISABLED": "true"}, "disabled"),
        ({"WANDB_DISABLED": "false", "WANDB_MODE": "online"}, "online"),
    ],
)
def test_the_mode_is_wandbs_own_variable_where_no_key_says_otherwise(environ, mode):
    assert wandb_mode(WandbConfig(), environ) is WandbMode(mode)


def test_a_mode_that_is_set_wins_over_the_environment():
    config = WandbConfig(mode=WandbMode("offline"))
    assert wandb_mode(config, {"WANDB_MODE": "online"}) is WandbMode("offline")


def test_a_mode_that_there_is_not_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"WANDB_MODE must be one of .*online.*, got 'onlin'"):
        wandb_mode(WandbConfig(), {"WANDB_MODE": "onlin"})


def test_names_are_the_keys_or_the_environments_or_the_run_directorys(tmp_path: Path):
    environ = {"WANDB_PROJECT": "theirs", "WANDB_NAME": "named"}
    bare = WandbIdentity.of(WandbConfig(), tmp_path / "run", environ={})
    assert (bare.project, bare.name, bare.entity, bare.group, bare.tags) == (
        "paceline", "run", None, None, None,
    )  # fmt: skip
    theirs = WandbIdentity.of(WandbConfig(), tmp_path / "run", environ=environ)
    assert (theirs.project, theirs.name) == ("theirs", "named")
    config = WandbConfig(project="ours", name="own", entity="team", group="g", tags=["a", "b"])
    ours = WandbIdentity.of(config, tmp_path / "run", environ=environ)
    assert (ours.project, ours.name, ours.entity, ours.group, ours.tags) == (
        "ours", "own", "team", "g", ("a", "b"),
    )  # fmt: skip


def test_an_id_is_kept_in_the_run_directory_and_the_environments_wins(tmp_path: Path):
    first = WandbIdentity.of(WandbConfig(), tmp_path, environ={})
    assert not first.is_resumed
    first.save(tmp_path)
    again = WandbIdentity.of(WandbConfig(), tmp_path, environ={})
    assert (again.run_id, again.is_resumed) == (first.run_id, True)
    forced = WandbIdentity.of(WandbConfig(), tmp_path, environ={"WANDB_RUN_ID": "mine"})
    assert forced.run_id == "mine"
