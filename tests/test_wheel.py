"""The package that is built runs elsewhere, with the tree of YAML files inside it and the user's own beside it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "guide"
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


def write_guides_files(folder: Path) -> None:
    """Write what the guide's pages tell a reader to write: each block that has its path in a comment, and the algorithm and
    the scorer, whose names stand in the text."""
    blocks = [
        block
        for page in ("training", "own-task", "own-algorithm")
        for block in re.findall(r"```\w+\n(.*?)```", (GUIDE / f"{page}.md").read_text(), re.S)
    ]
    for block in blocks:
        named = re.search(r"^# (mine/\S+)$", block, re.M)
        path = folder / (named[1] if named else "my_algorithm.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.replace("/data/problems.jsonl", str(folder / "problems.jsonl")))
    scorer = re.findall(
        r"```python\n# (my_scorer.py)\n(.*?)```", (ROOT / "README.md").read_text(), re.S
    )
    (folder / scorer[0][0]).write_text(scorer[0][1])
    rows = [{"question": f"{i} + 1 =", "final": str(i + 1), "answer": "x"} for i in range(40)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


OUTSIDE = (
    "--config-dir=mine", "experiment=ours", "task=grade_school", "model=tiny", "task.scorer=my_scorer.py:score",
    "algorithm=custom", "algorithm.path=my_algorithm.py:MovingBaseline", "algorithm.params.decay=0.95",
)  # fmt: skip


def test_the_guides_experiment_task_scorer_and_algorithm_compose_from_outside(installed, tmp_path):
    write_guides_files(tmp_path)
    done = paceline(installed, tmp_path, "train", *OUTSIDE, "--cfg", "job")
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert (config["group_size"], config["trainer"]["num_steps"]) == (8, 20)
    assert config["task"]["answer_column"] == "final"
    assert config["algorithm"]["params"] == {"decay": 0.95}


@pytest.mark.slow
def test_the_guides_experiment_task_scorer_and_algorithm_train_from_outside(installed, tmp_path):
    write_guides_files(tmp_path)
    small = ("debug=smoke", "task.num_held_out=null", "trainer.num_steps=2", "run_dir=run")
    done = paceline(installed, tmp_path, "train", *OUTSIDE, *small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "weights" / "v2" / "model.safetensors").is_file()
