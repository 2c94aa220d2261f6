"""A disk that fills up while a run writes."""

import errno
import json
from pathlib import Path

import pytest
import torch

from rl.runs import checkpoint
from rl.runs.checkpoint import load_checkpoint
from rl.runs.disk_full import is_disk_full
from rl.tracking.events import EventLog, read_events
from tests.e2e.runs import ANYTHING, train, weights_of

RUN = (ANYTHING, "evaluation.every_steps=0", "checkpoint.every_steps=1", "trainer.num_steps=9")


class FullDisk:
    """Fails every write to one kind of file from a step on."""

    def __init__(self, function, *, after: int) -> None:
        self._function = function
        self._num_left = after

    def __call__(self, *arguments, **named):
        if self._num_left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._num_left -= 1
        return self._function(*arguments, **named)


@pytest.mark.parametrize(
    "name", ["torch.save", "save_checkpoint"], ids=["trainer state", "weights"]
)
def test_a_full_disk_is_one_sentence_with_what_is_kept_and_leaves_no_rubbish(
    tmp_path, monkeypatch, name
):
    run_dir = tmp_path / "run"
    target = checkpoint if name == "save_checkpoint" else checkpoint.torch
    attribute = name.removeprefix("torch.")
    monkeypatch.setattr(target, attribute, FullDisk(getattr(target, attribute), after=2))
    output = train(run_dir, *RUN, code=1)
    words = " ".join(output.split())
    assert "error: the disk of run_dir=" in words
    assert "the checkpoint of step 2 is kept" in words
    assert "Traceback" not in output
    assert load_checkpoint(run_dir).state.policy_version == 2
    assert weights_of(run_dir, 2)
    left = {
        path.name for path in [*(run_dir / "weights").iterdir(), *(run_dir / "trainer").iterdir()]
    }
    assert left <= {"v1", "v2", "LATEST", "v1.pt", "v2.pt"}
    assert read_events(run_dir / "events.jsonl")[-1]["status"] == "failed"


def test_logs_that_cannot_be_written_end_a_run_with_its_last_step_kept(tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    write = FullDisk(EventLog.write, after=4)
    monkeypatch.setattr(EventLog, "write", lambda log, *arguments: write(log, *arguments))
    output = train(run_dir, *RUN, code=1)
    version = load_checkpoint(run_dir).state.policy_version
    assert f"the checkpoint of step {version} is kept" in " ".join(output.split())
    rows = [json.loads(line) for line in (run_dir / "events.jsonl").open()]
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.ENOENT, "x"), False),
        (RuntimeError("28"), False),
    ],
)
def test_a_full_disk_is_known_by_its_number_also_from_the_error_that_followed(error, is_full):
    assert is_disk_full(error) == is_full
    later = RuntimeError("unexpected pos")
    later.__context__ = error
    assert is_disk_full(later) == is_full


def test_a_real_disk_that_is_full_is_known_from_what_torch_raises():
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    tensors = {"a": torch.zeros(100_000)}
    with Path("/dev/full").open("wb", buffering=0) as full:
        with pytest.raises(Exception) as raised:  # noqa: PT011 - which one is torch's to say
            torch.save(tensors, full)
        assert is_disk_full(raised.value)
