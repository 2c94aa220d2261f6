"""Accuracy on held-out prompts. `python scripts/evaluate.py model.path=<run>`, or a version: `.../weights/v40`."""

from rl.cli import launch
from rl.config import EvaluateConfig


def evaluate(config: EvaluateConfig) -> None:
    from rl.evaluate import evaluate_model  # torch takes seconds, and a mistake is found before

    evaluate_model(config)


if __name__ == "__main__":
    launch(evaluate, config_name="evaluate")
