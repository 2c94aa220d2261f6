"""Several runs compared: a picture, and a table in the terminal."""

from rich.console import Console

from rl.cli import UserError
from rl.tracking.comparison import compare_runs
from rl.tracking.config import ReportConfig

__all__ = ["report"]


def report(config: ReportConfig) -> None:
    """Draw the runs of `config` and print their table.

    Raises:
        UserError: a directory holds no run, or names do not fit.
    """
    try:
        table = compare_runs(config)
    except ValueError as error:
        raise UserError(str(error)) from error
    console = Console(highlight=False)
    console.print(table)
    console.print(f"drawn: {config.output}", markup=False, soft_wrap=True)
