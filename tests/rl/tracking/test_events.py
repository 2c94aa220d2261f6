import json
import math
from pathlib import Path

import numpy as np
import pytest

from rl.tracking.events import SAMPLE_COLUMNS, EventLog, SampleLog, read_events


def _refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is not JSON")


def test_an_event_has_its_kind_its_time_and_its_fields_in_order(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.write("run_start", {"seed": 3})
    log.write("step", {"step": 1, "reward/mean": 0.5})
    first, second = read_events(tmp_path / "events.jsonl")
    assert (first["event"], first["seed"]) == ("run_start", 3)
    assert (second["event"], second["step"], second["reward/mean"]) == ("step", 1, 0.5)
    assert 1.7e9 < first["time"] <= second["time"]


def test_a_row_is_on_disk_before_the_log_is_closed(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for step in range(3):
        log.write("step", {"step": step})
        assert len(read_events(tmp_path / "events.jsonl")) == step + 1


def test_non_finite_floats_come_back_and_the_file_stays_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).write("step", {"a": math.nan, "b": math.inf, "c": [-math.inf, {"d": math.nan}]})
    raw = json.loads(path.read_text(), parse_constant=_refuse)
    assert (raw["a"], raw["b"], raw["c"][0]) == ("nan", "inf", "-inf")
    (row,) = read_events(path)
    assert math.isnan(row["a"])
    assert row["b"] == math.inf
    assert row["c"][0] == -math.inf
    assert math.isnan(row["c"][1]["d"])


def test_the_torn_last_line_of_a_killed_process_is_skipped_by_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).write("step", {"step": 1})
    with path.open("a") as file:
        file.write('{"event": "step", "ti')
    assert [row["step"] for row in read_events(path)] == [1]


def test_the_next_writer_cuts_a_torn_line_off_and_goes_on_after_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).write("step", {"step": 1})
    with path.open("a") as file:
        file.write('{"event": "step", "ti')
    EventLog(path).write("step", {"step": 2})
    assert [row["step"] for row in read_events(path)] == [1, 2]


def test_a_broken_line_that_is_not_torn_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "step"}\n{"event": "st\n{"event": "step"}\n')
    with pytest.raises(ValueError, match=r"events\.jsonl:2 is not JSON"):
        read_events(path)
    path.write_text('{"event": "step"}\n[1]\n')
    with pytest.raises(ValueError, match=r"events\.jsonl:2 must be a JSON object, got \[1\]"):
        read_events(path)


def test_what_the_log_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    with pytest.raises(ValueError, match=r"event must be one of run_start, .*, got 'stpe'"):
        log.write("stpe", {})
    with pytest.raises(ValueError, match="'time'"):
        log.write("step", {"time": 3.0})
    with pytest.raises(ValueError, match="pass int, float, str, list or dict"):
        log.write("step", {"reward/mean": np.float32(0.5)})
    assert read_events(tmp_path / "events.jsonl") == []


def test_samples_keep_their_text_even_when_it_is_not_valid_unicode(tmp_path, make_sample) -> None:
    path = tmp_path / "samples.jsonl"
    texts = ["½ ≠ 0,5\n\u2028", "half a character: \ud83d", "nan"]
    SampleLog(path).write([make_sample(completion=text) for text in texts])
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    assert [row["completion"] for row in rows] == texts
    assert all(tuple(row) == SAMPLE_COLUMNS for row in rows)


def test_a_sample_that_lacks_a_column_is_refused_by_name(tmp_path, make_sample) -> None:
    row = make_sample()
    del row["finish_reason"]
    with pytest.raises(ValueError, match="finish_reason"):
        SampleLog(tmp_path / "samples.jsonl").write([row])
