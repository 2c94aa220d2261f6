"""Train a policy. `python scripts/train.py experiment=arithmetic`; every key: `--cfg job`."""

from rl.cli import launch
from rl.config import TrainConfig


def train(config: TrainConfig) -> int:
    from rl.trainer.run import train  # torch takes seconds, and a mistake is found before

    return train(config)


if __name__ == "__main__":
    launch(train, config_name="train")
