import json
from pathlib import Path

import datasets
import pytest

from rl.tasks.config import DatasetConfig
from rl.tasks.dataset import dataset_prompts
from rl.tasks.task import load_task


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(start: int, stop: int) -> list[dict]:
    return [{"question": f"q{i}", "answer": str(i), "level": i % 3} for i in range(start, stop)]


def questions(prompts) -> list[str]:
    return [prompt.row["question"] for prompt in prompts]


def test_held_out_rows_are_split_off_by_the_seed(tmp_path):
    path = write(tmp_path / "a.jsonl", numbered(0, 20))
    split, again, other = (
        dataset_prompts(DatasetConfig(path=path, num_held_out=5, seed=seed)) for seed in (0, 0, 1)
    )
    assert (len(split.train), len(split.held_out)) == (15, 5)
    assert sorted(questions(split.train) + questions(split.held_out)) == sorted(
        f"q{i}" for i in range(20)
    )
    assert questions(split.held_out) != [f"q{i}" for i in range(5)]
    assert again == split
    assert questions(other.held_out) != questions(split.held_out)


def test_rows_keep_their_columns_and_gain_question_and_answer(tmp_path):
    path = write(
        tmp_path / "a.jsonl", [{"ask": f"q{i}", "value": i, "tests": [i]} for i in range(3)]
    )
    split = dataset_prompts(
        DatasetConfig(path=path, prompt_column="ask", answer_column="value", num_held_out=1)
    )
    row = split.train[0].row
    assert row["question"] == row["ask"]
    assert row["answer"] == row["value"]
    assert row["tests"] == [row["value"]]


def test_held_out_rows_of_another_file_are_left_out_of_training(tmp_path):
    config = DatasetConfig(
        path=write(tmp_path / "a.jsonl", numbered(0, 6)),
        held_out_path=write(tmp_path / "b.jsonl", numbered(4, 8)),
        num_held_out=4,
    )
    split = dataset_prompts(config)
    assert questions(split.train) == ["q0", "q1", "q2", "q3"]
    assert questions(split.held_out) == ["q4", "q5", "q6", "q7"]


def test_json_parquet_and_slices_of_splits_are_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(numbered(0, 4)))
    datasets.Dataset.from_list(numbered(10, 14)).to_parquet(str(tmp_path / "b.parquet"))
    split = dataset_prompts(
        DatasetConfig(
            path=str(tmp_path / "a.json"),
            split="train[:3]",
            held_out_path=str(tmp_path / "b.parquet"),
            num_held_out=4,
        )
    )
    assert questions(split.train) == ["q0", "q1", "q2"]
    assert questions(split.held_out) == ["q10", "q11", "q12", "q13"]


def test_the_task_is_scored_by_math_verify_or_by_the_users_own(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"question": f"q{i}", "answer": "1/2"} for i in range(3)])
    task = load_task(DatasetConfig(path=path, num_held_out=1))
    assert task.scorer("It is 0.5", task.train[0].row) == 1.0
    (tmp_path / "own.py").write_text("def score(completion, row):\n    return 7.0")
    own = load_task(DatasetConfig(path=path, num_held_out=1, scorer=f"{tmp_path}/own.py:score"))
    assert own.scorer("It is 0.5", own.train[0].row) == 7.0


def test_as_many_held_out_as_rows_is_an_error_with_the_counts(tmp_path):
    path = write(tmp_path / "a.jsonl", numbered(0, 3))
    with pytest.raises(ValueError, match=r"num_held_out must be < 3, .* got 3: lower it"):
        dataset_prompts(DatasetConfig(path=path, num_held_out=3))
    with pytest.raises(ValueError, match=r"num_held_out must be <= 3, .* got 4: lower it"):
        dataset_prompts(DatasetConfig(path=path, num_held_out=4))
    other = write(tmp_path / "b.jsonl", numbered(5, 7))
    with pytest.raises(ValueError, match=r"num_held_out must be <= 2, the rows of .*b\.jsonl"):
        dataset_prompts(DatasetConfig(path=path, held_out_path=other, num_held_out=3))


def test_a_missing_column_is_named_with_those_that_there_are(tmp_path):
    path = write(tmp_path / "a.jsonl", numbered(0, 3))
    with pytest.raises(
        ValueError, match=r"task\.answer_column must be .*'solution'; .*question, answer, level"
    ):
        dataset_prompts(DatasetConfig(path=path, answer_column="solution"))
    with pytest.raises(ValueError, match=r"task\.prompt_column must be .*'problem'"):
        dataset_prompts(DatasetConfig(path=path, prompt_column="problem"))


@pytest.mark.parametrize("hole", [{"answer": None}, {"question": None}, {"question": 7}])
def test_a_null_is_named_with_its_row(tmp_path, hole):
    path = write(tmp_path / "a.jsonl", [*numbered(0, 2), {"question": "q", "answer": "1"} | hole])
    with pytest.raises(ValueError, match=r"row 3 of .*a\.jsonl, counted from 1, must have"):
        dataset_prompts(DatasetConfig(path=path, num_held_out=1))


def test_a_missing_file_is_one_clear_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "a.jsonl", numbered(0, 3))
    with pytest.raises(ValueError, match=rf"^task\.path: there is no file {tmp_path}/gone\.jsonl$"):
        dataset_prompts(DatasetConfig(path="gone.jsonl"))
    with pytest.raises(ValueError, match=r"^task\.held_out_path: there is no file .*gone\.json$"):
        dataset_prompts(DatasetConfig(path=path, held_out_path="gone.json"))


def test_a_hub_id_that_cannot_be_reached_says_so():
    with pytest.raises(ValueError, match=r"task\.path must be .* hub id, got 'nobody/nothing': "):
        dataset_prompts(DatasetConfig(path="nobody/nothing"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "must have rows, got none"),
        ("a.json", "[]", "cannot be read: .* no data"),
        ("a.jsonl", '{"question": "q", "answer": 1}\n{oops\n', "cannot be read: JSON parse error"),
    ],
)
def test_an_empty_or_broken_file_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"task\.path={tmp_path}/{name}.* {message}"):
        dataset_prompts(DatasetConfig(path=str(tmp_path / name)))
