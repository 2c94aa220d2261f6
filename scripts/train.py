"""Train a policy. `python scripts/train.py experiment=arithmetic`; every key: `--cfg job`."""

from rl.cli import launch
from rl.trainer.run import train

if __name__ == "__main__":
    launch(train, config_name="train")
