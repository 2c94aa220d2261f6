import importlib.util
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rl.tracking.config import WandbConfig, WandbMode
from rl.tracking.events import SAMPLE_COLUMNS
from rl.tracking.wandb_run import sink as wandb_sink
from rl.tracking.wandb_run.sink import WandbSink

wandb = pytest.importorskip("wandb", reason='needs pip install "paceline[wandb]"')

OFFLINE = WandbConfig(mode=WandbMode.offline)
ONLINE = WandbConfig(mode=WandbMode.online)


class _FakeRun:
    """Stands for `wandb.Run`; `on_log` may raise or block."""

    def __init__(self, directory: Path, on_log: Callable[[int], None]) -> None:
        self.dir = str(directory / "files")
        self.rows: list[dict[str, Any]] = []
        self.exit_codes: list[int] = []
        self.summaries: dict[str, str] = {}
        self._on_log = on_log

    def define_metric(
        self, name: str, *, step_metric: str | None = None, summary: str | None = None
    ) -> None:
        if summary is not None:
            self.summaries[name] = summary

    def log(self, row: dict[str, Any]) -> None:
        self._on_log(len(self.rows))
        self.rows.append(row)

    def finish(self, *, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


class _FakeWandb:
    def __init__(self, tmp_path: Path) -> None:
        self.modes: list[str] = []
        self.unreachable = False
        self.on_log: Callable[[int], None] = lambda num_rows: None
        self._tmp_path = tmp_path

    def init(self, *, mode: str, **arguments: Any) -> _FakeRun:
        self.modes.append(mode)
        self.arguments = arguments
        if mode == "online" and self.unreachable:
            raise wandb.errors.CommError("no route to host\nConsider a longer init_timeout")
        self.run = _FakeRun(self._tmp_path / "wandb" / f"{mode}-run", self.on_log)
        return self.run


@pytest.fixture
def fake(tmp_path: Path, monkeypatch) -> _FakeWandb:
    fake = _FakeWandb(tmp_path)
    monkeypatch.setattr(wandb, "init", fake.init)
    monkeypatch.setattr(wandb, "setup", lambda settings: None)
    monkeypatch.setattr(wandb, "login", lambda prompt, verify: True)
    return fake


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=80)


def _written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_metrics_and_samples_of_a_step_are_one_row(fake, console, tmp_path, make_sample) -> None:
    sink = WandbSink(OFFLINE, tmp_path, {}, console=console)
    samples = [make_sample(answer=17), make_sample(answer="seventeen", reward=None)]
    sink.log(0, {"evaluation/accuracy": 0.25})
    sink.log(1, {"reward/mean": 0.5}, samples=samples)
    sink.finish()
    first, second = fake.run.rows
    assert first == {"step": 0, "evaluation/accuracy": 0.25}
    assert (second["step"], second["reward/mean"]) == (1, 0.5)
    assert second["samples"].columns == list(SAMPLE_COLUMNS)
    answers = [row[SAMPLE_COLUMNS.index("answer")] for row in second["samples"].data]
    assert answers == ["17", "seventeen"]
    assert fake.run.exit_codes == [0]
    assert _written(console) == ""


def test_a_crash_in_the_middle_is_one_warning_and_the_run_goes_on(fake, console, tmp_path) -> None:
    def crash(num_rows: int) -> None:
        if num_rows == 2:
            raise ConnectionResetError("[Errno 104] service is gone\nstack")

    fake.on_log = crash
    sink = WandbSink(OFFLINE, tmp_path, {}, console=console)
    for step in range(6):
        sink.log(step, {"reward/mean": 0.5})
    sink._thread.join()
    num_waiting = sink._waiting.qsize()
    sink.log(6, {"reward/mean": 0.5})
    assert sink._waiting.qsize() == num_waiting
    sink.finish()
    assert [row["step"] for row in fake.run.rows] == [0, 1]
    (warning,) = _written(console).splitlines()
    assert "off from here on: ConnectionResetError: [Errno 104] service is gone. The" in warning
    assert f"{tmp_path / 'events.jsonl'} has every row" in warning
    assert f"wandb sync {tmp_path / 'wandb' / 'offline-run'}" in warning


def test_an_unreachable_server_means_an_offline_run_and_how_to_upload_it(
    fake, console, tmp_path
) -> None:
    fake.unreachable = True
    sink = WandbSink(ONLINE, tmp_path, {}, console=console)
    sink.log(1, {"reward/mean": 0.5})
    sink.finish()
    assert fake.modes == ["online", "offline"]
    assert len(fake.run.rows) == 1
    assert sink.directory == tmp_path / "wandb" / "offline-run"
    (warning,) = _written(console).splitlines()
    assert "recorded offline: CommError: no route to host. Upload it later: wandb sync" in warning
    assert warning.endswith(str(sink.directory))


def test_a_service_that_hangs_holds_up_neither_a_step_nor_the_end(
    fake, console, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(wandb_sink, "FINISH_MARGIN_SECONDS", 0.0)
    released = threading.Event()

    def hang_then_crash(num_rows: int) -> None:
        released.wait()
        raise TimeoutError("gone")

    fake.on_log = hang_then_crash
    sink = WandbSink(OFFLINE, tmp_path, {}, console=console, finish_timeout_seconds=0.05)
    sink.log(1, {"reward/mean": 0.5})
    sink.finish()
    released.set()
    sink._thread.join()
    (warning,) = _written(console).splitlines()
    assert "did not take the last rows within 0.05 s" in warning


def test_rows_that_pile_up_switch_the_sink_off(fake, console, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(wandb_sink, "MAX_WAITING_ROWS", 3)
    started, released = threading.Event(), threading.Event()

    def hang(num_rows: int) -> None:
        started.set()
        released.wait()

    fake.on_log = hang
    sink = WandbSink(OFFLINE, tmp_path, {}, console=console)
    sink.log(0, {})
    started.wait()
    for step in range(1, 6):
        sink.log(step, {})
    released.set()
    assert _written(console).count("it does not answer, and 3 rows wait for it") == 1


def test_wandb_that_is_not_installed_is_named_with_the_cure(console, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'paceline\[wandb\]".*tracking.wandb.mode=disabled'):
        WandbSink(OFFLINE, tmp_path / "run", {}, console=console)
    assert not (tmp_path / "run").exists()


def test_online_without_an_api_key_is_refused_before_anything_starts(
    fake, console, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(wandb, "login", lambda prompt, verify: False)
    with pytest.raises(ValueError, match=r"needs an API key.*WANDB_API_KEY.*offline"):
        WandbSink(ONLINE, tmp_path / "run", {}, console=console)
    assert fake.modes == []


def test_disabled_leaves_no_trace(fake, console, tmp_path) -> None:
    sink = WandbSink(WandbConfig(mode=WandbMode.disabled), tmp_path / "run", {}, console=console)
    sink.log(1, {"reward/mean": 0.5})
    sink.finish()
    assert sink.directory is None
    assert fake.modes == []
    assert list(tmp_path.iterdir()) == []


def test_tables_are_a_few_however_many_steps_and_no_row_is_lost(
    fake, console, tmp_path, make_sample
) -> None:
    sink = WandbSink(OFFLINE, tmp_path, {}, console=console, samples_every_steps=3)
    for step in range(1, 8):
        sink.log(step, {"reward/mean": 0.5}, samples=[make_sample(step=step)])
        sink.log(step, {"evaluation/accuracy": 0.5})
    sink.finish()
    tables = [row["samples"] for row in fake.run.rows if "samples" in row]
    column = SAMPLE_COLUMNS.index("step")
    assert [[row[column] for row in table.data] for table in tables] == [[1, 2, 3], [4, 5, 6], [7]]
    assert fake.run.rows[-1].keys() == {"step", "samples"}


def test_the_summary_has_the_best_and_the_last_accuracy(fake, console, tmp_path) -> None:
    WandbSink(OFFLINE, tmp_path, {}, console=console).finish()
    assert fake.run.summaries["evaluation/accuracy"] == "max,last"


def test_a_resumed_run_goes_on_under_its_id_also_in_another_directory(
    fake, console, tmp_path
) -> None:
    WandbSink(ONLINE, tmp_path / "first", {}, console=console).finish()
    run_id = fake.arguments["id"]
    assert fake.arguments["resume"] is None
    for resumed_from in (None, tmp_path / "first"):
        directory = tmp_path / ("second" if resumed_from else "first")
        WandbSink(ONLINE, directory, {}, console=console, resumed_from=resumed_from).finish()
        assert (fake.arguments["id"], fake.arguments["resume"]) == (run_id, "allow")
    WandbSink(ONLINE, tmp_path / "another", {}, console=console).finish()
    assert fake.arguments["id"] != run_id


def test_what_the_run_prints_is_in_its_offline_record(tmp_path) -> None:
    script = """
import sys
from pathlib import Path
from rich.console import Console
from rl.tracking.config import WandbConfig
from rl.tracking.wandb_run.sink import WandbSink

console = Console()
sink = WandbSink(WandbConfig(), Path(sys.argv[1]), {}, console=console)
console.print("step 1/2 reward 0.5")
sink.finish()
"""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environ, timeout=60, check=True
    )
    (log,) = tmp_path.rglob("output.log")
    assert "step 1/2 reward 0.5" in log.read_text()


def _bytes_on_disk(run_dir: Path) -> int:
    files = [path for path in run_dir.rglob("*") if path.is_file() and path.suffix != ".log"]
    return sum(path.stat().st_size for path in files)


def test_what_a_real_offline_run_takes_on_disk_grows_by_a_constant_per_step(
    console, tmp_path, make_step, make_sample
) -> None:
    counts = (10, 20, 50)
    for num_steps in counts:
        sink = WandbSink(OFFLINE, tmp_path / str(num_steps), {"seed": 0}, console=console)
        for step in range(num_steps):
            sink.log(step, make_step(step), samples=[make_sample(step=step)] * 4)
        sink.finish()
    deadline = time.monotonic() + 20
    while True:  # the library's own process may still be writing when `finish` returns
        sizes = {num_steps: _bytes_on_disk(tmp_path / str(num_steps)) for num_steps in counts}
        early = (sizes[20] - sizes[10]) / 10
        late = (sizes[50] - sizes[20]) / 30
        if 1000 < late < 1.1 * early or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert 1000 < late < 1.1 * early, sizes
    for num_steps in counts:
        assert len(list((tmp_path / str(num_steps)).rglob("*.table.json"))) == num_steps
    assert _written(console) == ""


def test_a_real_run_without_a_network_is_recorded_offline_and_says_only_that(tmp_path) -> None:
    script = """
import sys
from pathlib import Path
from rich.console import Console
from rl.tracking.config import WandbConfig, WandbMode
from rl.tracking.wandb_run.sink import WandbSink

config = WandbConfig(mode=WandbMode.online)
sink = WandbSink(config, Path(sys.argv[1]), {}, console=Console(), init_timeout_seconds=0.5)
sink.log(1, {"reward/mean": 0.5})
sink.finish()
"""
    nobody = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, **nobody},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    (warning,) = (done.stdout + done.stderr).splitlines()
    directory = Path(warning.rpartition("wandb sync ")[2])
    assert "recorded offline" in warning
    assert directory.parent == tmp_path / "wandb"
    assert len(list(directory.glob("*.wandb"))) == 1
