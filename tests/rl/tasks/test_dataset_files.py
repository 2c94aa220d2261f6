"""Which files a path names."""

import json
from pathlib import Path

import datasets
import pytest

from rl.tasks.files import find_files
from rl.tasks.sources import read_rows


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def put(*paths: Path) -> None:
    """Write files of one row, which says where it is."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"question": path.name, "answer": str(path)}) + "\n")


def names(path: Path | str, *, split: str = "train") -> list[str]:
    return [file.name for file in find_files(str(path), split=split)]


def rows(path: Path | str, *, split: str = "train") -> list[dict]:
    return [row.values for row in read_rows(str(path), subset="", split=split, key="task.path")]


def test_a_path_with_brackets_is_that_file_and_never_another(tmp_path):
    put(tmp_path / "run[1]/a.jsonl", tmp_path / "run1/a.jsonl", tmp_path / "run1/b.jsonl")
    (row,) = rows(tmp_path / "run[1]/a.jsonl")
    assert row["answer"] == str(tmp_path / "run[1]/a.jsonl")
    assert names(tmp_path / "run[1]/*.jsonl") == ["a.jsonl"]
    with pytest.raises(ValueError, match=r"^task\.path: there is no file .*run\[1\]/b\.jsonl$"):
        rows(tmp_path / "run[1]/b.jsonl")


def test_a_pattern_is_read_where_no_file_has_its_name(tmp_path):
    put(
        tmp_path / "a1.jsonl",
        tmp_path / "a2.jsonl",
        tmp_path / "b/a3.jsonl",
        tmp_path / "b/c/a4.jsonl",
    )
    assert names(tmp_path / "a[12].jsonl") == ["a1.jsonl", "a2.jsonl"]
    assert names(tmp_path / "a?.jsonl") == ["a1.jsonl", "a2.jsonl"]
    assert names(tmp_path / "**/a*.jsonl") == ["a1.jsonl", "a2.jsonl", "a3.jsonl", "a4.jsonl"]
    put(tmp_path / "a[12].jsonl")
    assert names(tmp_path / "a[12].jsonl") == ["a[12].jsonl"]


def test_a_relative_path_and_the_home_directory_are_found(tmp_path, monkeypatch):
    put(tmp_path / "here/a.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (
        names("here/a.jsonl") == names("./here/*.jsonl") == names("~/here/a.jsonl") == ["a.jsonl"]
    )
    put(tmp_path / "~/here/b.jsonl")
    assert names("~/here/b.jsonl") == ["b.jsonl"]


def test_a_missing_file_is_named_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^task\.path: there is no file /data/\[math\]/a\.jsonl$"):
        rows("/data/[math]/a.jsonl")
    for path in ("gone.csv", "gone.txt", "a/b/c", "./gone"):
        with pytest.raises(ValueError, match=rf"^task\.path: there is no file {tmp_path}/"):
            rows(path)
    put(tmp_path / "data/a.jsonl")
    with pytest.raises(ValueError, match=r"there is no file .*data/gone$"):
        rows("data/gone")
    with pytest.raises(ValueError, match=r"there is no file https://a\.b/c\.jsonl$"):
        rows("https://a.b/c.jsonl")


def test_a_directory_gives_all_its_files_of_rows_and_leaves_others(tmp_path):
    put(
        tmp_path / "b.jsonl",
        tmp_path / "a.JSONL",
        tmp_path / "sub/c.json",
        tmp_path / ".hidden.jsonl",
    )
    (tmp_path / "README.md").write_text("no rows")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert [row["question"] for row in rows(tmp_path)] == ["a.JSONL", "b.jsonl", "c.json"]


def test_a_directory_with_splits_gives_the_one_that_is_asked_for(tmp_path):
    put(tmp_path / "train-00000-of-00002.jsonl", tmp_path / "train-00001-of-00002.jsonl")
    put(tmp_path / "test-00000-of-00001.jsonl")
    assert names(tmp_path, split="test") == ["test-00000-of-00001.jsonl"]
    assert len(names(tmp_path, split="train")) == 2
    assert len(rows(tmp_path, split="train[:1]")) == 1
    with pytest.raises(ValueError, match="no file of the split 'validation', only of test, train"):
        find_files(str(tmp_path), split="validation")


def test_a_directory_without_rows_says_so(tmp_path):
    (tmp_path / "README.md").write_text("no rows")
    with pytest.raises(ValueError, match=r"^task\.path: the directory .* has no file of rows"):
        rows(tmp_path)


def test_what_datasets_saved_is_read_with_its_splits(tmp_path):
    held = [{"question": "q", "answer": 10**18 + 1}]
    data = datasets.DatasetDict(
        train=datasets.Dataset.from_list(held * 3), test=datasets.Dataset.from_list(held)
    )
    data.save_to_disk(tmp_path / "both")
    data["test"].save_to_disk(tmp_path / "one")
    assert rows(tmp_path / "both", split="train[1:]") == held * 2
    assert rows(tmp_path / "one", split="train") == held
    with pytest.raises(ValueError, match=r"both has no split 'dev', only train, test"):
        rows(tmp_path / "both", split="dev")


@pytest.mark.parametrize(
    ("split", "kept"),
    [
        ("train", 10),
        ("train[:3]", 3),
        ("train[80%:]", 2),
        ("train[-4:]", 4),
        ("train[:2]+train[5:]", 7),
    ],
)
def test_a_slice_is_cut_out_of_a_file(tmp_path, split, kept):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": 1}\n' * 10)
    assert len(rows(path, split=split)) == kept


def test_a_slice_that_is_none_is_refused(tmp_path):
    put(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"task\.path: the split 'train\[1:2:3\]' cannot be taken"):
        rows(tmp_path / "a.jsonl", split="train[1:2:3]")
