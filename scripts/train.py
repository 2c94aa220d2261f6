"""Train a policy. `python scripts/train.py experiment=arithmetic`; every key: `--keys`."""

from rl.main import run_command

if __name__ == "__main__":
    run_command("train")
