"""Comparison of several runs: a picture, and a table in the terminal."""

from rich.console import Console

from rl.cli import UserError
from rl.tracking.comparison import compare_runs
from rl.tracking.config import ReportConfig

__all__ = ["report"]


def report(config: ReportConfig) -> None:
    """Draw the curves of several runs and print a table of them.

    Raises:
        UserError: a directory contains no run, or the names do not match the runs.
    """
    try:
        table = compare_runs(config)
    except ValueError as error:
        raise UserError(str(error)) from error
    console = Console(highlight=False)
    console.print(table)
    console.print(f"drawn: {config.output}", markup=False, soft_wrap=True)
