"""Compare runs in one picture and one table. `python scripts/report.py 'runs=[outputs/a,outputs/sweeps/*]' output=runs.png`."""

from rl.main import run_command

if __name__ == "__main__":
    run_command("report")
