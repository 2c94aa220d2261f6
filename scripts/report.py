"""Several runs in one picture. `python scripts/report.py 'runs=[outputs/a,outputs/b]' output=runs.png`."""

from pathlib import Path

from rl.cli import UserError, launch
from rl.config import ReportConfig
from rl.tracking.comparison import draw_comparison
from rl.tracking.events import read_events


def report(config: ReportConfig) -> None:
    try:
        events = [read_events(Path(run) / "events.jsonl") for run in config.runs]
        names = config.names or [Path(run).name for run in config.runs]
        draw_comparison(dict(zip(names, events, strict=True)), Path(config.output))
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from error
    print(f"drawn: {config.output}")


if __name__ == "__main__":
    launch(report, config_name="report")
