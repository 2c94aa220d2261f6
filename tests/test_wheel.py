"""The package that is built runs elsewhere, with the tree of YAML files inside it and the user's own beside it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
OWN = """# @package _global_
defaults:
  - override /model: tiny
  - override /task: ours
  - _self_

trainer:
  num_steps: 1
evaluation:
  every_steps: 0
reward:
  num_workers: 1
"""
TASK = """defaults:
  - arithmetic
  - _self_

max_digits: 1
num_held_out: 5
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A directory with the built package and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip"]
    wheel = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    subprocess.run([*pip, *wheel], check=True, cwd=folder)
    (built,) = folder.glob("paceline-*.whl")
    target = ["install", "--quiet", "--no-deps", "--target", str(folder / "site"), str(built)]
    subprocess.run([*pip, *target], check=True, cwd=folder)
    return folder / "site"


def paceline(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(installed / "bin" / "paceline"), *arguments],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    for group, text in {"experiment": OWN, "task": TASK}.items():
        (tmp_path / "mine" / group).mkdir(parents=True)
        (tmp_path / "mine" / group / "ours.yaml").write_text(text)
    return tmp_path


@pytest.mark.parametrize("flag", [("--config-dir", "mine"), ("--config-dir=mine",)])
def test_an_installed_package_composes_an_experiment_and_a_task_from_outside(
    installed, elsewhere, flag
):
    done = paceline(installed, elsewhere, "train", *flag, "experiment=ours", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["model"]["path"] == "built-in:tiny"
    assert (config["task"]["max_digits"], config["trainer"]["num_steps"]) == (1, 1)


def test_an_installed_package_knows_its_version_and_what_it_was_built_from(installed, elsewhere):
    done = paceline(installed, elsewhere, "--version")
    assert done.stdout.startswith("paceline 0.1.0, commit ")
    assert not (installed / "scripts").exists()
    wrong = paceline(installed, elsewhere, "trian")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: there is no command 'trian'; did you mean train?\n"


@pytest.mark.slow
def test_an_installed_package_trains(installed, elsewhere):
    arguments = (
        "--config-dir=mine",
        "experiment=ours",
        "debug=smoke",
        "trainer.num_steps=1",
        "run_dir=run",
    )
    done = paceline(installed, elsewhere, "train", *arguments)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "run" / "weights" / "v1" / "model.safetensors").is_file()
