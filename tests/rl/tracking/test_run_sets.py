import json
from pathlib import Path

import pytest

from rl.tracking.run_sets import find_runs, group_runs


def save_run(path: Path, **config: object) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(json.dumps({"run_dir": str(path), **config}))
    (path / "events.jsonl").touch()
    return path


def names(*runs: Path, group_seeds: bool = True, given: tuple[str, ...] = ()) -> dict[str, int]:
    sets = group_runs(runs, group_seeds=group_seeds, names=given)
    return {run_set.name: len(run_set.paths) for run_set in sets}


def test_runs_are_found_by_path_by_sweep_and_by_glob_each_once(tmp_path, monkeypatch):
    first, second = (save_run(tmp_path / "sweep" / name) for name in ("a", "b"))
    (tmp_path / "sweep" / "notes").mkdir()
    assert find_runs([str(first)]) == [first]
    assert find_runs([str(tmp_path / "sweep")]) == [first, second]
    assert find_runs([str(tmp_path / "sweep" / "*"), str(second)]) == [first, second]
    monkeypatch.chdir(tmp_path)
    assert find_runs(["sweep/?"]) == [Path("sweep/a"), Path("sweep/b")]


def test_a_directory_with_brackets_in_its_name_is_that_directory(tmp_path):
    bracketed = save_run(tmp_path / "run[1]")
    save_run(tmp_path / "run1")
    assert find_runs([str(bracketed)]) == [bracketed]


@pytest.mark.parametrize("pattern", ["nothing", "no*", "empty"])
def test_what_leads_to_no_run_is_named(tmp_path, pattern):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"events.jsonl; found none at .*{pattern[:2]}"):
        find_runs([str(tmp_path / pattern)])


def test_runs_that_differ_only_in_seed_and_bookkeeping_are_one_set(tmp_path):
    runs = [
        save_run(tmp_path / str(seed), seed=seed, trainer={"learning_rate": 1e-5}, tracking={"wandb": {"name": str(seed)}})
        for seed in range(3)
    ]  # fmt: skip
    assert list(names(*runs).values()) == [3]
    assert list(names(*runs, group_seeds=False).values()) == [1, 1, 1]


def test_sets_are_called_what_they_differ_in_also_where_one_lacks_the_key(tmp_path):
    runs = [
        save_run(tmp_path / "x", algorithm={"clip_high": 0.2}),
        save_run(tmp_path / "y", algorithm={"clip_high": 0.3, "max_refills": 2}),
    ]
    assert names(*runs) == {"clip_high=0.2": 1, "clip_high=0.3, max_refills=2": 1}


def test_sets_that_differ_in_much_or_in_nothing_are_called_by_their_directories(tmp_path):
    much = [
        save_run(tmp_path / day / "run", **dict.fromkeys("abcd", day)) for day in ("mon", "tue")
    ]
    assert names(*much) == {"mon/run": 1, "tue/run": 1}
    bare = [tmp_path / "a", tmp_path / "b"]
    for run in bare:
        run.mkdir()
        (run / "events.jsonl").touch()
    assert names(*bare) == {"a": 1, "b": 1}


def test_names_are_one_per_curve(tmp_path):
    runs = [save_run(tmp_path / "x", seed=0), save_run(tmp_path / "y", seed=1)]
    assert names(*runs, given=("both",)) == {"both": 2}
    with pytest.raises(
        ValueError, match=r"names must be 1 different names, one per curve, got \['a', 'b'\]"
    ):
        names(*runs, given=("a", "b"))
