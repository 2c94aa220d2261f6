"""A run that goes on from another: what is left to do, what differs from then, and what must not differ."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rl.checkpoint import RunState, load_checkpoint
from rl.config import TrainConfig
from rl.saved_config import changed_keys, read_config, save_config, task_config_of
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
    """Whether the run goes on in the directory that it is resumed from."""
    if not (config.resume_from and config.run_dir):
        return False
    return Path(config.run_dir).resolve() == Path(config.resume_from).resolve()


def check_resume(config: TrainConfig) -> None:
    """Refuse to go on from a run that has nothing left to do.

    Raises:
        ValueError: no checkpoint is there, or it has made all of `trainer.num_steps` already.
    """
    if not config.resume_from:
        return
    version = load_checkpoint(Path(config.resume_from)).state.policy_version
    if version >= config.trainer.num_steps:
        raise ValueError(
            f"trainer.num_steps must be > {version}, the steps that resume_from={config.resume_from} has made, got "
            f"{config.trainer.num_steps}: there is nothing left to train; raise it, or evaluate what there is: "
            f"python scripts/evaluate.py model.path={config.resume_from}"
        )


def cut_unkept_steps(config: TrainConfig, state: RunState) -> None:
    """Take events of steps that the checkpoint does not hold out of the logs of the run's directory."""
    num_cut = cut_events_after(Path(config.run_dir), state.policy_version)
    if num_cut:
        logger.info(
            "%d steps after step %d were not kept by a checkpoint, and are made again",
            num_cut,
            state.policy_version,
        )


def write_config(config: TrainConfig, *, first_version: int) -> None:
    """Write the run's config.yaml; one that is there, of the run until `first_version`, is kept beside."""
    path = Path(config.run_dir) / "config.yaml"
    if path.exists():
        path.rename(path.with_name(f"config.until_v{first_version}.yaml"))
    save_config(config, path)


def resume_plan(config: TrainConfig, state: RunState) -> dict[str, str]:
    """Rows of the plan: where the run goes on, and every key that differs from then."""
    plan = {"resumed from": f"{config.resume_from}, at step {state.policy_version}"}
    saved = read_config(Path(config.resume_from))
    if saved is None:
        return {**plan, "changed": "not known: its config.yaml names no schemas"}
    changes = changed_keys(saved, config)
    if not changes:
        return plan
    lines = [f"{key}: {before} -> {after}" for key, (before, after) in changes.items()]
    lines += _consequences(config, changes, saved, state.policy_version)
    return {**plan, "changed": "\n".join(lines)}


def check_held_out(config: TrainConfig, task: Task, state: RunState) -> None:
    """Refuse to evaluate on prompts that the run has trained on, under the task that it had before.

    Raises:
        ValueError: with how many they are.
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
            f"resume_from={config.resume_from}: accuracy on them would mean nothing; keep task.seed and task.num_held_out "
            "as they were there, hold out other data, or begin a new run from its weights and another task"
        )


def _consequences(
    config: TrainConfig,
    changes: Mapping[str, Any],
    saved: Mapping[str, Any],
    version: int,
) -> list[str]:
    lines = []
    if "seed" in changes:
        lines.append("another seed: from here on other samples, and prompts in another order")
    if any(key.startswith("task") for key in changes):
        lines.append("another task: accuracies from before cannot be compared with those to come")
    trainer = config.trainer
    before = _learning_rate_before(saved, trainer, version)
    now = learning_rate(trainer, version)
    if before is not None and before != now:
        lines.append(
            f"the learning rate of the next step is {now:.3g}; by the schedule from before it would be {before:.3g}"
        )
    return lines


def _learning_rate_before(
    saved: Mapping[str, Any], trainer: TrainerConfig, version: int
) -> float | None:
    """The rate that the next step would have had; None where the schedule was of a kind that is gone."""
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
