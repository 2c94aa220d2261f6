import json
import os
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rl.rewards.binding import bind_scorer
from rl.rewards.job import ScoreJob
from rl.tasks.config import DatasetConfig
from rl.tasks.dataset import dataset_prompts
from rl.tasks.prompts import Prompt
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


def job(prompt: Prompt, completion: str) -> ScoreJob:
    return ScoreJob(
        completion=completion, row=prompt.row, prompt=prompt.question, answer=prompt.answer
    )


def questions(prompts) -> list[str]:
    return [prompt.question for prompt in prompts]


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


def test_a_row_keeps_its_columns_and_question_and_answer_stand_beside_it(tmp_path):
    row = {"prompt": "1 + 1 =", "final": 2, "question": "old", "answer": "wrong", "tests": [1]}
    path = write(tmp_path / "a.jsonl", [row, {**row, "prompt": "2 + 1 =", "final": 3}])
    config = DatasetConfig(
        path=path, prompt_column="prompt", answer_column="final", num_held_out=1, split="train"
    )
    (prompt,) = (
        p
        for p in (*dataset_prompts(config).train, *dataset_prompts(config).held_out)
        if p.answer == 2
    )
    assert prompt.row == row
    assert (prompt.question, prompt.answer) == ("1 + 1 =", 2)
    assert prompt.messages == ({"role": "user", "content": "1 + 1 ="},)


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
    assert bind_scorer(task.scorer)(job(task.train[0], "It is 0.5")) == 1.0
    (tmp_path / "own.py").write_text("def score(completion, row):\n    return 7.0")
    own = load_task(DatasetConfig(path=path, num_held_out=1, scorer=f"{tmp_path}/own.py:score"))
    assert own.scorer("It is 0.5", own.train[0].row) == 7.0


def test_the_answer_column_is_scored_though_the_row_has_another_answer(tmp_path):
    rows = [{"prompt": f"q{i}", "final": "5", "answer": "999"} for i in range(3)]
    task = load_task(
        DatasetConfig(
            path=write(tmp_path / "a.jsonl", rows),
            prompt_column="prompt",
            answer_column="final",
            num_held_out=1,
        )
    )
    scores = [
        bind_scorer(task.scorer)(job(task.train[0], text)) for text in ("It is 5", "It is 999")
    ]
    assert scores == [1.0, 0.0]


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
        ("a.json", "[]", "must have rows, got none"),
        (
            "a.jsonl",
            '{"question": "q", "answer": 1}\n{oops\n',
            "cannot be read: line 2, character 2: ",
        ),
        ("a.csv", "question,answer\nq,1\nq,1,2\n", "cannot be read: line 3: 3 values, "),
        ("a.parquet", "no parquet", "cannot be read: "),
        ("a.jsonl.gz", "no gzip", "cannot be read: Not a gzipped file"),
    ],
)
def test_an_empty_or_broken_file_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"^task\.path.*{tmp_path}/{name}.* ?{message}"):
        dataset_prompts(DatasetConfig(path=str(tmp_path / name)))


def test_a_tenth_is_held_out_of_a_small_dataset_and_a_thousand_at_most(tmp_path, caplog):
    small = write(tmp_path / "a.jsonl", numbered(0, 40))
    with caplog.at_level("INFO", logger="paceline"):
        split = dataset_prompts(DatasetConfig(path=small))
    assert (len(split.train), len(split.held_out)) == (36, 4)
    assert "held out 4 of 40 rows" in caplog.text
    large = write(tmp_path / "b.jsonl", numbered(0, 12_000))
    assert len(dataset_prompts(DatasetConfig(path=large)).held_out) == 1000
    other = DatasetConfig(path=small, held_out_path=write(tmp_path / "c.jsonl", numbered(50, 57)))
    assert len(dataset_prompts(other).held_out) == 7


def test_all_rows_may_be_held_out_where_nothing_is_trained(tmp_path):
    path = write(tmp_path / "a.jsonl", numbered(0, 3))
    task = load_task(DatasetConfig(path=path, num_held_out=3), needs_training=False)
    assert questions(task.held_out) == ["q0", "q1", "q2"]
    assert list(task.train) == []


def test_the_row_number_is_that_of_the_file_also_in_a_slice(tmp_path):
    path = write(tmp_path / "a.jsonl", numbered(0, 10))
    split = dataset_prompts(DatasetConfig(path=path, split="train[4:6]", num_held_out=1))
    origins = {p.question: p.origin for p in (*split.train, *split.held_out)}
    assert origins == {"q4": f"row 5 of {path}", "q5": f"row 6 of {path}"}


@pytest.mark.parametrize("empty", ["", "  \n", [], [{"role": "user", "content": " "}]])
def test_prompts_that_ask_nothing_are_refused_with_their_count_and_rows(tmp_path, empty):
    rows = numbered(0, 5)
    rows[1]["question"] = rows[4]["question"] = empty
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=r"row 2 of .*a\.jsonl.*asks nothing \(2 of 5 .*: 2, 5\)"):
        dataset_prompts(DatasetConfig(path=path))


def test_a_struct_is_no_answer_and_a_dotted_name_reaches_into_it(tmp_path):
    rows = [
        {"question": f"q{i}", "reward_model": {"ground_truth": "42", "style": "rule"}}
        for i in range(4)
    ]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        ValueError, match=r"row 1 of .*task\.answer_column=reward_model\.ground_truth"
    ):
        load_task(DatasetConfig(path=path, answer_column="reward_model"))
    task = load_task(DatasetConfig(path=path, answer_column="reward_model.ground_truth"))
    assert task.train[0].answer == "42"
    assert task.train[0].row in rows


def test_a_gold_that_is_no_answer_is_refused_with_row_and_column(tmp_path):
    frame = pyarrow.table({"question": ["a", "b", "c"], "answer": [1.0, float("nan"), 2.0]})
    pyarrow.parquet.write_table(frame, tmp_path / "nan.parquet")
    with pytest.raises(ValueError, match=r"row 2 of .*nan\.parquet.*'answer', got nan"):
        load_task(DatasetConfig(path=str(tmp_path / "nan.parquet")))
    frame = pyarrow.table({"question": ["a"], "answer": [b"42"]})
    pyarrow.parquet.write_table(frame, tmp_path / "bytes.parquet")
    with pytest.raises(ValueError, match=r"row 1 of .*bytes\.parquet.*'answer', got b'42'"):
        load_task(DatasetConfig(path=str(tmp_path / "bytes.parquet")))


def test_an_own_scorer_may_have_any_answer_but_a_missing_one(tmp_path):
    (tmp_path / "own.py").write_text("def score(completion, row):\n    return 7.0")
    scorer = f"{tmp_path}/own.py:score"
    path = write(
        tmp_path / "a.jsonl", [{"question": f"q{i}", "answer": {"a": i}} for i in range(3)]
    )
    task = load_task(DatasetConfig(path=path, scorer=scorer))
    assert task.train[0].answer == task.train[0].row["answer"]
    path = write(tmp_path / "b.jsonl", [{"question": f"q{i}", "answer": None} for i in range(3)])
    with pytest.raises(ValueError, match=r"row 1 of .*missing value .*\(3 of 3 rows"):
        load_task(DatasetConfig(path=path, scorer=scorer))


def test_chat_messages_are_asked_as_they_stand(tmp_path, caplog):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "6 + 3 ="},
    ]
    rows = [{"prompt": turns, "answer": 9}, {"prompt": turns[3:], "answer": 9}]
    config = DatasetConfig(
        path=write(tmp_path / "a.jsonl", rows),
        prompt_column="prompt",
        num_held_out=1,
        system_prompt="Calculate.",
        user_prompt="Q: {question}",
        reply_prefix="{question}",
    )
    split = dataset_prompts(config)
    long, short = sorted((*split.train, *split.held_out), key=lambda p: -len(p.messages))
    asked, begun = (
        {"role": "user", "content": "Q: 6 + 3 ="},
        {"role": "assistant", "content": "6 + 3 ="},
    )
    assert long.messages == (*turns[:3], asked, begun)
    assert short.messages == ({"role": "system", "content": "Calculate."}, asked, begun)
    assert long.question == tuple(turns)


def test_prompts_that_end_with_the_assistants_turn_are_said(tmp_path, caplog):
    turns = [{"role": "user", "content": "6 + 3 ="}, {"role": "assistant", "content": "It is 9"}]
    rows = [{"prompt": turns, "answer": i} for i in range(3)]
    path = write(tmp_path / "a.jsonl", rows)
    config = DatasetConfig(path=path, prompt_column="prompt", num_held_out=1)
    with pytest.raises(ValueError, match="all 2 training prompts are among the 1 held-out"):
        dataset_prompts(config)
    assert "3 of 3 prompts end with the assistant's turn" in caplog.text
    with pytest.raises(ValueError, match=r"task\.reply_prefix must be empty .*row \d of"):
        load_task(
            DatasetConfig(path=path, prompt_column="prompt", num_held_out=3, reply_prefix="So"),
            needs_training=False,
        )


def test_a_placeholder_is_a_column_or_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", numbered(0, 3))
    split = dataset_prompts(DatasetConfig(path=path, user_prompt="{question} at {level}"))
    assert split.train[0].messages[0]["content"] == "q1 at 1"
    with pytest.raises(
        ValueError, match=r"task\.user_prompt has \{hint\}.* of question, answer, level"
    ):
        dataset_prompts(DatasetConfig(path=path, user_prompt="{question} {hint}"))
    with pytest.raises(ValueError, match=r"task\.reply_prefix must not show the answer"):
        dataset_prompts(DatasetConfig(path=path, reply_prefix="{answer}"))


def test_what_is_on_disk_is_read_whatever_was_read_before(tmp_path):
    path = tmp_path / "a.jsonl"
    for start in (0, 10):
        write(path, numbered(start, start + 5))
        os.utime(path, (1e9, 1e9))
        split = dataset_prompts(DatasetConfig(path=str(path), num_held_out=1))
        assert {p.row["answer"] for p in (*split.train, *split.held_out)} == {
            str(i) for i in range(start, start + 5)
        }


def test_a_cache_that_cannot_be_written_is_the_reason_that_is_named(tmp_path, monkeypatch):
    def refuse(*arguments, **named):
        raise PermissionError("[Errno 13] Permission denied: '/nowhere/.cache'")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match=r"task\.path=a/b needs .*cache of datasets.*set HF_HOME"):
        dataset_prompts(DatasetConfig(path="a/b"))
