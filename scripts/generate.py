"""Completions in the terminal. `python scripts/generate.py 'prompts=["12 + 35 ="]' num_samples=4`."""

from rl.cli import launch
from rl.config import GenerateConfig


def generate(config: GenerateConfig) -> None:
    from rl.generate import generate  # torch takes seconds, and a mistake is found before

    generate(config)


if __name__ == "__main__":
    launch(generate, config_name="generate")
