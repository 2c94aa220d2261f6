"""Runs on datasets of the user's own: files of several shapes, evaluation of a whole file, what is shown."""

import csv
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.runs import run_script, steps_of, train

QUICK = ("trainer.num_steps=2", "evaluation.every_steps=0", "task.num_held_out=null")
SCORER = "def score(completion, row):\n    return -1.0 if row else 0.0\n"


def questions(count: int) -> list[dict]:
    return [{"question": f"{i} + {i} =", "answer": 2 * i} for i in range(count)]


def chats(count: int) -> list[dict]:
    system = {"role": "system", "content": "Add."}
    return [
        {
            "prompt": [system, {"role": "user", "content": f"{i} + {i} ="}],
            "reward_model": {"ground_truth": str(2 * i), "style": "rule"},
        }
        for i in range(count)
    ]


def write_csv(path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(questions(40))


def write_lines(path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in questions(40))
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())


def write_directory(path: Path) -> None:
    path.mkdir()
    write_lines(path / "train.jsonl")
    write_lines(path / "test.jsonl")


SHAPES: dict[str, Callable[[Path], object]] = {
    "a.csv": write_csv,
    "a.JSONL": write_lines,
    "a.jsonl.gz": write_lines,
    "a.json": lambda path: path.write_text(json.dumps({"data": questions(40)})),
    "directory": write_directory,
}


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run on chat messages, and what it printed."""
    directory = tmp_path_factory.mktemp("chats")
    pq.write_table(pa.Table.from_pylist(chats(40)), directory / "a.parquet")
    output = train(
        directory / "run", "task=dataset", f"task.path={directory / 'a.parquet'}", *QUICK,
        "task.prompt_column=prompt", "task.answer_column=reward_model.ground_truth",
        "debug=rollout_only", "num_prompts_per_step=4", "group_size=4",
        "sampling.max_tokens=8", "engine.kv_cache_gb=0.1",
    )  # fmt: skip
    return directory / "run", output


def test_the_first_prompt_is_shown_as_the_model_sees_it(chat_run):
    output = re.sub(r"\s+", " ", chat_run[1])
    assert "36 prompts to train on" in output
    assert ", 4 held out" in output
    assert re.search(r"first prompt .*Add\..* \+ .* =.* its last tokens '.*' '.*'", output)
    assert re.search(r"its answer \d+ \(row \d+ of .*a\.parquet\)", output)


def test_ten_scored_completions_are_shown_where_nothing_is_trained(chat_run):
    shown = chat_run[1].partition("Scored completions")[2].partition("Files")[0]
    assert shown.count("=") >= 10
    assert "expected" in shown


def test_samples_hold_the_rendered_prompt(chat_run):
    lines = (chat_run[0] / "samples.jsonl").read_text().splitlines()
    for sample in map(json.loads, lines):
        assert sample["prompt"] in sample["rendered_prompt"]
        assert len(sample["rendered_prompt"]) > len(sample["prompt"]) + len("Add.")


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_a_file_of_each_shape_trains_two_steps(tmp_path, name):
    SHAPES[name](tmp_path / name)
    train(tmp_path / "run", "task=dataset", f"task.path={tmp_path / name}", *QUICK)
    assert len(steps_of(tmp_path / "run")) == 2


def test_a_whole_file_is_evaluated_and_scores_below_0_are_a_mean_reward(tmp_path):
    write_lines(tmp_path / "a.jsonl")
    (tmp_path / "scorer.py").write_text(SCORER)
    output = run_script(
        "evaluate", "model=tiny", "task=dataset", f"task.path={tmp_path / 'a.jsonl'}", "task.num_held_out=40",
        f"task.scorer={tmp_path / 'scorer.py'}:score", "sampling.max_tokens=4", "reward.num_workers=1",
    )  # fmt: skip
    words = re.sub(r"\s+", " ", output)
    assert "40 held-out prompts" in words
    assert "Held-out reward" in words
    assert "-1.000 mean score of 40 prompts" in words
    assert "%" not in words
