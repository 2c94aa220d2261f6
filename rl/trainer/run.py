"""Training run, from its config to the summary at the end."""

import logging
import os
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl.cli import INTERRUPTED, RunError, UserError
from rl.config import RunMode, TrainConfig
from rl.runs.directory import claim_run_dir
from rl.runs.disk_full import is_disk_full
from rl.runs.stop_signal import Stopped, StopSignal
from rl.tracking.answers import AnswerPair, pair_answers
from rl.tracking.harmless import Harmless
from rl.tracking.summary import print_summary
from rl.trainer.build import Run, assemble, assemble_follower
from rl.trainer.collect.evaluation import Evaluation
from rl.trainer.collect.scoring import ScoringError
from rl.trainer.config import TrainerBackend
from rl.trainer.learn.follower import dismiss
from rl.trainer.metrics.mismatch import MismatchError
from rl.trainer.metrics.rollouts import all_rows, sample_rows
from rl.trainer.ranks.checks import check_launch
from rl.trainer.ranks.group import join_ranks
from rl.trainer.ranks.ray_launch import RankError, start_ranks
from rl.trainer.resume import check_resume, goes_on_in_place, write_config
from rollout.core import NotFiniteError
from rollout.weights.store import WeightStore

__all__ = ["train", "train_rank"]

logger = logging.getLogger("paceline")


def train(config: TrainConfig) -> int:
    """Run `config` with the processes that it asks for; return the exit code, which is 0, or 130 after a stop signal.

    Raises:
        UserError: the config, or a file that it names, has a mistake.
        RunError: another process or a full disk ended the run.
    """
    if os.environ.get("RANK", "0") != "0":  # only the first rank claims the run directory
        return train_rank(config)
    with StopSignal() as stop, ExitStack() as stack:
        try:
            check_resume(config)
            goes_on = goes_on_in_place(config)
            directory = stack.enter_context(claim_run_dir(config.run_dir, goes_on=goes_on))
        except ValueError as error:
            raise UserError(str(error)) from error
        config = replace(config, run_dir=str(directory.path))
        try:
            return _train_ranks(config, stop)
        except Stopped as signal:
            logger.warning(_stopped_at_once(config, signal))
            return INTERRUPTED
        except RankError as error:
            if stop.requested:
                return INTERRUPTED
            raise RunError(f"{error}{_how_to_go_on(config)}") from error
        except Exception as error:
            if not is_disk_full(error):
                raise
            raise RunError(_disk_is_full(config)) from error


def train_rank(config: TrainConfig) -> int:
    """Run a process of the trainer other than the first, however it was started; return its exit code."""
    with StopSignal(is_quiet=True) as stop:
        return _train_rank(config, stop)


def _train_ranks(config: TrainConfig, stop: StopSignal) -> int:
    """Start the other ranks, if the config asks for them, and run the first one."""
    if config.trainer.num_processes == 1:
        return _train_rank(config, stop)
    with ExitStack() as stack:
        try:
            check_launch(config, os.environ)
            stack.enter_context(start_ranks(train_rank, config))
        except ValueError as error:
            raise UserError(str(error)) from error
        return _train_rank(config, stop)


def _train_rank(config: TrainConfig, stop: StopSignal) -> int:
    needs_group = config.trainer.backend is TrainerBackend.deepspeed
    with join_ranks("cpu", needs_group=needs_group) as ranks, ExitStack() as stack:
        if not ranks.is_first:
            follower = assemble_follower(config, ranks)
            stop.defer()
            follower.run()
            return 0
        try:
            run = assemble(config, stack, ranks, stop)
        except ValueError as error:
            raise UserError(str(error)) from error
        stop.defer()
        try:
            is_done = _run(run, config, stop)
        except NotFiniteError as error:
            raise RunError(f"{error}{_how_to_go_on(config)}") from error
        except (ScoringError, MismatchError) as error:
            raise UserError(f"{error}{_how_to_go_on(config)}") from error
        # ranks that got the signal as well may be gone
        with suppress(*() if is_done else (RuntimeError,)):
            dismiss(ranks)
        return 0 if is_done else INTERRUPTED


def _run(run: Run, config: TrainConfig, stop: StopSignal) -> bool:
    """Run the loop and show its results; return whether all steps were done."""
    console, harmless = Console(), Harmless()
    with harmless("the plan"):
        _print_plan(console, run.plan)
    write_config(config, first_version=run.loop.policy_version)
    run.tracker.run_start(run.plan)
    is_done = run.loop.run()
    status = {"status": "finished"} if is_done else {"status": "interrupted", "signal": stop.name}
    run.tracker.run_end(
        {"policy_version": run.loop.policy_version, **status},
        exit_code=0 if is_done else INTERRUPTED,
    )
    with harmless("the summary"):
        if not is_done:
            console.print(_interrupted(run, config, stop), soft_wrap=True)
        _print_summary(console, run, config)
    return is_done


def _print_plan(console: Console, plan: dict[str, str]) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in plan.items():
        table.add_row(Text(name, "dim"), Text(value))
    console.print(table)


def _print_summary(console: Console, run: Run, config: TrainConfig) -> None:
    loop, run_dir = run.loop, Path(config.run_dir)
    first, last = loop.first_evaluation, loop.last_evaluation
    paths = {
        "checkpoint": run_dir / "weights" / f"v{loop.policy_version}",
        **run.tracker.paths,
    }
    answers, title = _answers(first, last, step=loop.policy_version), "Answers to held-out prompts"
    if config.mode is RunMode.rollout_only:
        rows = all_rows(loop.last_groups, step=loop.policy_version)
        answers, title = pair_answers(None, rows), "Scored completions of the last step"
    print_summary(
        console,
        before=first.metrics() if first else None,
        after=last.metrics() if last else None,
        answers=answers,
        answers_title=title,
        paths={name: path for name, path in paths.items() if path.exists()},
    )


def _answers(first: Evaluation | None, last: Evaluation | None, *, step: int) -> list[AnswerPair]:
    if last is None:
        return []
    before = sample_rows(first.groups, step=0) if first else None
    return pair_answers(before, sample_rows(last.groups, step=step))


def _interrupted(run: Run, config: TrainConfig, stop: StopSignal) -> Text:
    version = _latest(config)
    step = (
        f"Stopped by {stop.name} after step {run.loop.policy_version} of {config.trainer.num_steps}"
    )
    if version is None:
        return Text(f"{step}; nothing was trained.")
    return Text(f"{step}; resume_from={config.run_dir} continues from step {version}.")


def _stopped_at_once(config: TrainConfig, signal: Stopped) -> str:
    version = _latest(config)
    if version is None:
        return f"stopped by {signal} before the first step; run_dir={config.run_dir} is free again"
    return (
        f"stopped by {signal} at once; resume_from={config.run_dir} continues from step {version}"
    )


def _disk_is_full(config: TrainConfig) -> str:
    version = _latest(config)
    if version is None:
        return f"the disk of run_dir={config.run_dir} is full, and no checkpoint was kept; make room, or choose another run_dir"
    return (
        f"the disk of run_dir={config.run_dir} is full; the checkpoint of step {version} is kept: make room, and "
        f"resume_from={config.run_dir} continues from it"
    )


def _how_to_go_on(config: TrainConfig) -> str:
    version = _latest(config)
    if version is None:
        return "; no checkpoint was kept"
    return f"; resume_from={config.run_dir} continues from step {version}"


def _latest(config: TrainConfig) -> int | None:
    """The newest version that is kept."""
    store = WeightStore(Path(config.run_dir) / "weights")
    return store.latest() if store.root.is_dir() else None
