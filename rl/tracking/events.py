"""The record of a run as JSON lines: events.jsonl, which is the truth, and samples.jsonl.

One row is one line of strict JSON, flushed as it is written. JSON has no NaN, so the floats nan, inf and -inf are
written as the strings "nan", "inf" and "-inf", and read back as floats (so is a string that spells one). A row counts once its newline is there: what
a killed process left after the last newline is no row, neither for a reader nor for the next writer.
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rollout.weights.atomic import write_text_atomically

EVENT_KINDS = ("run_start", "step", "evaluation", "checkpoint", "run_end")
SAMPLE_COLUMNS = (
    "step",
    "policy_version",
    "prompt_id",
    "group_id",
    "sample_index",
    "prompt",
    "completion",
    "answer",
    "reward",  # null when the completion could not be scored
    "outcome",
    "finish_reason",
    "num_tokens",
    "rendered_prompt",  # as the model saw it, special tokens too
)
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class EventLog:
    """Append-only log of one run; each row has `event`, `time` (unix seconds) and the fields given."""

    def __init__(self, path: Path) -> None:
        self._lines = _JsonLines(path)

    def write(self, event: str, /, fields: Mapping[str, Any]) -> None:
        """Append one row.

        Raises:
            ValueError: an unknown event, a field that would hide `event` or `time`, or a value JSON cannot hold.
        """
        if event not in EVENT_KINDS:
            raise ValueError(f"event must be one of {', '.join(EVENT_KINDS)}, got {event!r}")
        if hidden := {"event", "time"} & fields.keys():
            raise ValueError(f"{event}: {sorted(hidden)} belong to the log; rename the fields")
        self._lines.append({"event": event, "time": time.time(), **fields})

    def close(self) -> None:
        self._lines.close()


class SampleLog:
    """Append-only log of sampled rollouts, one row each, with the keys of `SAMPLE_COLUMNS`."""

    def __init__(self, path: Path) -> None:
        self._lines = _JsonLines(path)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows.

        Raises:
            ValueError: a row lacks a column or has one too many.
        """
        for row in rows:
            if row.keys() != set(SAMPLE_COLUMNS):
                wrong = sorted(row.keys() ^ set(SAMPLE_COLUMNS))
                raise ValueError(f"a sample has exactly the keys of SAMPLE_COLUMNS; check {wrong}")
            self._lines.append({column: row[column] for column in SAMPLE_COLUMNS})

    def close(self) -> None:
        self._lines.close()


def cut_events_after(run_dir: Path, step: int) -> int:
    """Take rows of later steps out of a run's two logs; returns how many steps they were."""
    num_steps = 0
    for name in ("events.jsonl", "samples.jsonl"):
        path = run_dir / name
        if not path.exists():
            continue
        rows = read_events(path)
        kept = [row for row in rows if row.get("step", 0) <= step]
        later = {row["step"] for row in rows if row.get("step", 0) > step}
        if name == "events.jsonl":
            num_steps = len(later)
        if later:
            lines = [json.dumps(_to_json(row), ensure_ascii=False) + "\n" for row in kept]
            write_text_atomically(path, "".join(lines))
    return num_steps


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read all rows of an events.jsonl, in order; non-finite floats restored, a torn last line skipped.

    Raises:
        ValueError: any other line is not a JSON object.
    """
    lines = path.read_bytes().split(b"\n")[:-1]  # after the last newline: nothing, or a torn line
    return [_parse(line, where=f"{path}:{number}") for number, line in enumerate(lines, start=1)]


class _JsonLines:
    def __init__(self, path: Path) -> None:
        if path.exists():
            _cut_torn_line(path)
        # a lone surrogate in decoded text has no UTF-8; its backslash escape is what JSON would write
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace")

    def append(self, row: Mapping[str, Any]) -> None:
        try:
            line = json.dumps(_to_json(row), allow_nan=False, ensure_ascii=False)
        except TypeError as error:
            raise ValueError(
                f"cannot log {row!r}: {error}; pass int, float, str, list or dict"
            ) from error
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _cut_torn_line(path: Path) -> None:
    end = path.read_bytes().rfind(b"\n") + 1
    os.truncate(path, end)


def _parse(line: bytes, *, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(
            f"{where} is not JSON ({error}); the file was edited or the disk failed"
        ) from error
    if not isinstance(row, dict):
        raise ValueError(f"{where} must be a JSON object, got {row!r}")
    return _from_json(row)


def _to_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, str):
        return _NON_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: _from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return value
