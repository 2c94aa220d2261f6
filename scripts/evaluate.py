"""Accuracy on held-out prompts. `python scripts/evaluate.py model=hf model.path=outputs/.../weights/v40`."""

from rl.cli import launch
from rl.evaluate import evaluate_model

if __name__ == "__main__":
    launch(evaluate_model, config_name="evaluate")
