"""One training run, from its config to the summary at the end."""

import os
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rl.cli import INTERRUPTED, RunError, UserError
from rl.config import TrainConfig
from rl.tracking.summary import print_summary
from rl.trainer.build import Run, assemble, assemble_follower
from rl.trainer.config import TrainerBackend
from rl.trainer.loop import ScoringError
from rl.trainer.metrics.mismatch import MismatchError
from rl.trainer.metrics.step import sample_rows
from rl.trainer.ranks.checks import check_launch
from rl.trainer.ranks.follower import dismiss
from rl.trainer.ranks.group import join_ranks
from rl.trainer.ranks.ray_launch import RankError, start_ranks
from rollout.weights.store import WeightStore

__all__ = ["train", "train_rank"]


def train(config: TrainConfig) -> int:
    """Run `config`, with the processes that it asks for; returns the exit code: 0, or 130 when it was told to stop (a checkpoint is kept).

    Raises:
        UserError: a mistake in the config or in what it points to.
        RunError: another process ended the run.
    """
    if config.trainer.num_processes == 1:
        return train_rank(config)
    try:
        return _train_ranks(config)
    except RankError as error:
        raise RunError(f"{error}{_how_to_go_on(config)}") from error


def _train_ranks(config: TrainConfig) -> int:
    with ExitStack() as stack:
        try:
            check_launch(config, os.environ)
            stack.enter_context(start_ranks(train_rank, config))
        except ValueError as error:
            raise UserError(str(error)) from error
        return train_rank(config)


def train_rank(config: TrainConfig) -> int:
    """What every process does, whoever started it; see `train`."""
    needs_group = config.trainer.backend is TrainerBackend.deepspeed
    with join_ranks("cpu", needs_group=needs_group) as ranks, ExitStack() as stack:
        if not ranks.is_first:
            assemble_follower(config, ranks).run()
            return 0
        try:
            run = assemble(config, stack, ranks)
        except ValueError as error:
            raise UserError(str(error)) from error
        try:
            is_done = _run(run, config)
        except (ScoringError, MismatchError) as error:
            raise UserError(f"{error}. The weights so far are kept in {config.run_dir}") from error
        dismiss(ranks)
        return 0 if is_done else INTERRUPTED


def _how_to_go_on(config: TrainConfig) -> str:
    store = WeightStore(Path(config.run_dir) / "weights")
    version = store.latest() if store.root.is_dir() else None
    return "" if version is None else f"; resume_from={config.run_dir} goes on from step {version}"


def _run(run: Run, config: TrainConfig) -> bool:
    console = Console()
    _print_plan(console, run.plan)
    run.tracker.run_start(run.plan)
    is_done = run.loop.run()
    loop = run.loop
    run.tracker.run_end(
        {"policy_version": loop.policy_version, "status": "finished" if is_done else "interrupted"}
    )
    first, last = loop.first_evaluation, loop.last_evaluation
    if not is_done:
        console.print(f"Stopped after step {loop.policy_version}; everything up to it is kept.")
    run_dir = Path(config.run_dir)
    paths = {
        "checkpoint": run_dir / "weights" / f"v{loop.policy_version}",
        **run.tracker.paths,
    }
    print_summary(
        console,
        before=first.metrics() if first else None,
        after=last.metrics() if last else None,
        samples=sample_rows(last.groups[:3], step=loop.policy_version) if last else [],
        paths={name: path for name, path in paths.items() if path.exists()},
    )
    return is_done


def _print_plan(console: Console, plan: dict[str, str]) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in plan.items():
        table.add_row(f"[dim]{name}[/]", value)
    console.print(table)
