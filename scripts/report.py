"""Several runs in one picture and one table. `python scripts/report.py 'runs=[outputs/a,outputs/sweeps/*]' output=runs.png`."""

from rich.console import Console

from rl.cli import UserError, launch
from rl.tracking.comparison import compare_runs
from rl.tracking.config import ReportConfig


def report(config: ReportConfig) -> None:
    try:
        table = compare_runs(config)
    except ValueError as error:
        raise UserError(str(error)) from error
    console = Console(highlight=False)
    console.print(table)
    console.print(f"drawn: {config.output}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    launch(report, config_name="report")
