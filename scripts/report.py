"""Several runs in one picture. `python scripts/report.py 'runs=[outputs/a,outputs/b]' output=runs.png`."""

from rl.cli import UserError, launch
from rl.tracking.comparison import draw_runs
from rl.tracking.config import ReportConfig


def report(config: ReportConfig) -> None:
    try:
        draw_runs(config)
    except ValueError as error:
        raise UserError(str(error)) from error
    print(f"drawn: {config.output}")


if __name__ == "__main__":
    launch(report, config_name="report")
