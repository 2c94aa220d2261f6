"""Print completions. `python scripts/generate.py 'prompts=["12 + 35 ="]' num_samples=4`."""

from rl.main import run_command

if __name__ == "__main__":
    run_command("generate")
