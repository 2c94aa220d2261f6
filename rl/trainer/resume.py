"""Checks and messages for a run that continues another one, and the files that it changes."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rl.config import TrainConfig
from rl.runs.checkpoint import RunState, load_checkpoint
from rl.runs.saved_config import changed_keys, read_config, save_config, task_config_of
from rl.tasks.prompts import PromptOrder, identity
from rl.tasks.task import Task, load_prompts
from rl.tracking.events import cut_events_after
from rl.trainer.config import LRSchedule, TrainerConfig
from rl.trainer.weights.lr_schedule import learning_rate

__all__ = [
    "check_held_out",
    "check_resume",
    "cut_unkept_steps",
    "goes_on_in_place",
    "resume_plan",
    "write_config",
]

logger = logging.getLogger("paceline")


def goes_on_in_place(config: TrainConfig) -> bool:
    """Return whether the run continues in the directory that it is resumed from."""
    if not (config.resume_from and config.run_dir):
        return False
    return Path(config.run_dir).resolve() == Path(config.resume_from).resolve()


def check_resume(config: TrainConfig) -> None:
    """Raise a ValueError if the run to continue has nothing left to do.

    Raises:
        ValueError: there is no checkpoint, or the run has made all of `trainer.num_steps`.
    """
    if not config.resume_from:
        return
    version = load_checkpoint(Path(config.resume_from)).state.policy_version
    if version >= config.trainer.num_steps:
        raise ValueError(
            f"trainer.num_steps must be > {version}, the steps that resume_from={config.resume_from} has made, got "
            f"{config.trainer.num_steps}: there is nothing left to train; raise it, or evaluate the run: "
            f"python scripts/evaluate.py model.path={config.resume_from}"
        )


def cut_unkept_steps(config: TrainConfig, state: RunState) -> None:
    """Remove the events of steps after the checkpoint from the logs in the run's directory."""
    num_cut = cut_events_after(Path(config.run_dir), state.policy_version)
    if num_cut:
        logger.info(
            "%d steps after step %d are in no checkpoint and are repeated",
            num_cut,
            state.policy_version,
        )


def write_config(config: TrainConfig, *, first_version: int) -> None:
    """Write the run's config.yaml. An existing one, of the run until `first_version`, is renamed."""
    path = Path(config.run_dir) / "config.yaml"
    if path.exists():
        path.rename(path.with_name(f"config.until_v{first_version}.yaml"))
    save_config(config, path)


def resume_plan(config: TrainConfig, state: RunState) -> dict[str, str]:
    """Return rows of the plan: the step at which the run continues, and the keys that have changed."""
    plan = {"resumed from": f"{config.resume_from}, at step {state.policy_version}"}
    saved = read_config(Path(config.resume_from))
    if saved is None:
        return {**plan, "changed": "unknown: its config.yaml names no schemas"}
    changes = changed_keys(saved, config)
    if not changes:
        return plan
    lines = [f"{key}: {before} -> {after}" for key, (before, after) in changes.items()]
    lines += _consequences(config, changes, saved, state.policy_version)
    return {**plan, "changed": "\n".join(lines)}


def check_held_out(config: TrainConfig, task: Task, state: RunState) -> None:
    """Raise a ValueError if the run has trained on held-out prompts, under the task that it had before.

    Raises:
        ValueError: there are such prompts; the message has their number.
    """
    saved = read_config(Path(config.resume_from)) if config.resume_from else None
    if saved is None:
        return
    before = task_config_of(saved)
    if before == config.task:
        return
    try:
        prompts = load_prompts(before).train
    except ValueError as error:
        logger.warning(
            "held-out prompts may have been trained on: the task of resume_from cannot be loaded (%s)",
            error,
        )
        return
    order = PromptOrder(len(prompts), seed=int(saved["seed"]))
    num_begun = min(state.accepted_groups + state.dropped_groups, len(prompts))
    trained = {identity(prompts[order.prompt_id(ordinal)]) for ordinal in range(num_begun)}
    num_seen = sum(identity(prompt) in trained for prompt in task.held_out)
    if num_seen:
        raise ValueError(
            f"{num_seen} of the {len(task.held_out)} held-out prompts of this task were trained on by "
            f"resume_from={config.resume_from}: accuracy on them would be meaningless; keep task.seed and task.num_held_out "
            "as they were, hold out other data, or start a new run from its weights with another task"
        )


def _consequences(
    config: TrainConfig,
    changes: Mapping[str, Any],
    saved: Mapping[str, Any],
    version: int,
) -> list[str]:
    lines = []
    if "seed" in changes:
        lines.append("another seed: from now on, samples and the order of prompts differ")
    if any(key.startswith("task") for key in changes):
        lines.append("another task: earlier accuracies cannot be compared with later ones")
    trainer = config.trainer
    before = _learning_rate_before(saved, trainer, version)
    now = learning_rate(trainer, version)
    if before is not None and before != now:
        lines.append(
            f"the learning rate of the next step is {now:.3g}; with the earlier schedule it would be {before:.3g}"
        )
    return lines


def _learning_rate_before(
    saved: Mapping[str, Any], trainer: TrainerConfig, version: int
) -> float | None:
    """Return the rate that the next step would have had; None if the old schedule no longer exists."""
    old = saved["trainer"]
    if old["lr_schedule"] not in LRSchedule.__members__:
        return None
    keys = ("num_steps", "learning_rate", "num_warmup_steps")
    before = replace(
        trainer,
        lr_schedule=LRSchedule[old["lr_schedule"]],
        **{key: old[key] for key in keys},
    )
    return learning_rate(before, version)
