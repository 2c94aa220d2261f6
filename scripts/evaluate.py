"""Measure accuracy on held-out prompts. `python scripts/evaluate.py model.path=<run>`, or a version: `.../weights/v40`."""

from rl.main import run_command

if __name__ == "__main__":
    run_command("evaluate")
