import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rollout.weights import atomic
from rollout.weights import lease as lease_module
from rollout.weights import store as store_module
from rollout.weights.manifest import describe_tensor
from rollout.weights.store import WeightStore


class Crash(BaseException):
    """Stands for kill -9: nothing may catch it."""


def tensors(version: int) -> dict[str, torch.Tensor]:
    return {
        "model.norm.weight": torch.full((4,), float(version)),
        "model.embed_tokens.weight": torch.arange(12).view(3, 4).bfloat16() + version,
    }


def writer(version: int):
    def write(directory: Path) -> None:
        (directory / "config.json").write_text('{"model_type": "llama"}')
        save_file(tensors(version), directory / "model.safetensors")

    return write


@pytest.fixture
def store(tmp_path):
    return WeightStore(tmp_path / "run/weights")


@pytest.fixture
def filled(store):
    for version in (0, 1, 2):
        store.publish(version, writer(version))
    return store


def names(store: WeightStore) -> set[str]:
    return {path.name for path in store.root.iterdir()}


def test_nothing_is_latest_before_the_first_publication(store):
    assert store.latest() is None
    assert store.versions() == []
    with pytest.raises(ValueError, match=r"holds no version 0; it holds none"):
        store.path(0)


def test_a_version_is_a_checkpoint_with_a_manifest_of_what_was_written(store):
    path = store.publish(3, writer(3))
    assert path == store.path(3) == store.root / "v3"
    assert {p.name for p in path.iterdir()} == {"config.json", "manifest.json", "model.safetensors"}
    manifest = store.manifest(3)
    assert manifest.version == 3
    assert sorted(manifest.tensors, key=lambda spec: spec.name) == [
        describe_tensor(name, tensor) for name, tensor in sorted(tensors(3).items())
    ]
    assert {f.name: f.size for f in manifest.files} == {
        name: (path / name).stat().st_size for name in ("config.json", "model.safetensors")
    }
    store.verify(3)


def test_latest_follows_the_publications(filled):
    assert filled.latest() == 2
    assert (filled.root / "LATEST").read_text() == "v2\n"
    assert filled.versions() == [0, 1, 2]
    assert (
        load_file(filled.path(1) / "model.safetensors")["model.norm.weight"].tolist() == [1.0] * 4
    )


def test_every_byte_is_durable_before_the_rename_and_the_rename_before_latest(store, monkeypatch):
    events = []
    rename, replace = Path.rename, Path.replace
    monkeypatch.setattr(atomic, "_sync", lambda path: events.append(path.name))
    monkeypatch.setattr(Path, "rename", lambda a, b: events.append(f"-> {b.name}") or rename(a, b))
    monkeypatch.setattr(
        Path, "replace", lambda a, b: events.append(f"-> {b.name}") or replace(a, b)
    )
    store.publish(0, writer(0))
    contents = {"config.json", "model.safetensors", "manifest.json", ".v0.staged"}
    assert set(events[:4]) == contents
    assert events[4:] == ["-> v0", "weights", ".LATEST.new", "-> LATEST", "weights"]


def test_versions_are_numbers_and_not_words(store):
    for version in (9, 10):
        store.publish(version, writer(version))
    assert store.latest() == 10
    store.remove_old(keep=1)
    assert store.versions() == [10]


@pytest.mark.parametrize("version", [-1, 0, 1, 2])
def test_a_published_version_is_never_written_again(filled, version):
    with pytest.raises(
        ValueError, match=rf"immutable and grow from 0: got {version} .* latest is 2"
    ):
        filled.publish(version, writer(7))
    for old in (0, 1, 2):
        filled.verify(old)


def test_the_files_of_a_version_cannot_be_written(filled):
    modes = {path.stat().st_mode & 0o222 for path in filled.path(2).iterdir()}
    assert modes == {0}


def test_another_process_sees_what_was_published(filled):
    assert WeightStore(filled.root).latest() == 2


@pytest.mark.parametrize("left", [[], ["config.json"], ["model.safetensors"]])
def test_what_is_no_checkpoint_is_not_published(store, left):
    with pytest.raises(
        RuntimeError, match=r"must hold config\.json and \*\.safetensors, write left"
    ):
        store.publish(0, lambda directory: [(directory / name).touch() for name in left])
    assert store.latest() is None


def crash(*_args: object, **_kwargs: object) -> None:
    raise Crash


def crash_half_way(directory: Path) -> None:
    (directory / "config.json").write_text("{}")
    raise Crash


def crash_after_the_first_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def rename_and_die(self, target):
        rename(self, target)
        raise Crash

    monkeypatch.setattr(Path, "rename", rename_and_die)


CRASHES = {
    "while the files are written": lambda m: None,
    "before the manifest": lambda m: m.setattr(store_module, "_describe", crash),
    "before the rename": lambda m: m.setattr(Path, "rename", crash),
    "after the rename": crash_after_the_first_rename,
    "before LATEST moves": lambda m: m.setattr(store_module, "write_text_atomically", crash),
    "while LATEST moves": lambda m: m.setattr(Path, "replace", crash),
}


@pytest.mark.parametrize("point", CRASHES)
@pytest.mark.parametrize("published", [[], [0, 1]], ids=["first", "third"])
def test_a_crash_leaves_the_earlier_version_in_force_and_the_next_run_can_publish(
    store, point, published
):
    for version in published:
        store.publish(version, writer(version))
    version = len(published)
    latest = store.latest()
    write = crash_half_way if point == "while the files are written" else writer(version)
    with pytest.MonkeyPatch.context() as monkeypatch:
        CRASHES[point](monkeypatch)
        with pytest.raises(Crash):
            store.publish(version, write)

    resumed = WeightStore(store.root)
    assert resumed.latest() == latest
    assert resumed.versions() == published
    with pytest.raises(ValueError, match=f"holds no version {version}"):
        resumed.path(version)

    # other bytes: what the killed run left must not show through
    resumed.publish(version, writer(version + 100))
    assert resumed.latest() == version
    assert (
        load_file(resumed.path(version) / "model.safetensors")["model.norm.weight"][0]
        == version + 100
    )
    for intact in [*published, version]:
        resumed.verify(intact)
    assert names(resumed) == {"LATEST", *(f"v{v}" for v in [*published, version])}


def test_a_crash_while_old_versions_go_leaves_no_half_version(filled, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", crash)
        with pytest.raises(Crash):
            filled.remove_old(keep=1)
    for version in filled.versions():
        filled.verify(version)
    filled.publish(3, writer(3))
    assert not [name for name in names(filled) if name.startswith(".")]


def damage(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def test_verify_names_a_flipped_byte(filled):
    path = filled.path(1) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    damage(path, bytes(data))
    with pytest.raises(RuntimeError, match=r"v1 differ .*: model\.safetensors has changed$"):
        filled.verify(1)
    filled.verify(0)


def test_verify_names_a_missing_an_extra_and_a_truncated_file(filled):
    directory = filled.path(1)
    (directory / "config.json").unlink()
    (directory / "notes.txt").touch()
    damage(directory / "model.safetensors", b"short")
    with pytest.raises(
        RuntimeError,
        match=r"config\.json is missing; notes\.txt is not in the manifest; model\.safetensors has changed",
    ):
        filled.verify(1)


def test_verify_names_a_tensor_whose_manifest_entry_was_changed(filled):
    path = filled.path(1) / "manifest.json"
    content = json.loads(path.read_text())
    content["tensors"][0]["digest"] = "xxh3_128:0"
    damage(path, json.dumps(content).encode())
    with pytest.raises(RuntimeError, match=rf"{content['tensors'][0]['name']} has changed"):
        filled.verify(1)


def test_old_versions_go_and_the_latest_always_stays(filled):
    filled.remove_old(keep=2)
    assert filled.versions() == [1, 2]
    filled.remove_old(keep=5)
    assert filled.versions() == [1, 2]
    filled.remove_old(keep=1)
    assert names(filled) == {"LATEST", "v2"}
    assert filled.latest() == 2
    with pytest.raises(ValueError, match=r"keep must be >= 1.*got 0"):
        filled.remove_old(keep=0)
    with pytest.raises(ValueError, match=r"holds no version 0; it holds \[2\]"):
        filled.path(0)


def test_an_unannounced_version_counts_neither_as_held_nor_as_kept(filled):
    shutil.copytree(filled.path(2), filled.root / "v3")  # as a run killed before LATEST leaves it
    filled.remove_old(keep=1)
    assert filled.versions() == [2]
    assert filled.latest() == 2


@pytest.mark.parametrize("text", ["", "2", "v", "v7", "../v2", "v2 v1", "v02"])
def test_a_broken_latest_is_an_error_and_not_an_empty_store(filled, text):
    (filled.root / "LATEST").write_text(text)
    with pytest.raises(RuntimeError, match="must name a version in the same directory"):
        filled.latest()
    with pytest.raises(RuntimeError, match="must name a version in the same directory"):
        filled.publish(3, writer(3))
    assert {"v0", "v1", "v2"} <= names(filled)


def test_sharded_weights_are_all_in_the_manifest(store):
    def write(directory: Path) -> None:
        (directory / "config.json").touch()
        for shard, (name, tensor) in enumerate(tensors(0).items()):
            save_file({name: tensor}, directory / f"model-{shard}.safetensors")

    store.publish(0, write)
    assert {spec.name for spec in store.manifest(0).tensors} == tensors(0).keys()
    store.verify(0)


def superseded_at(store: WeightStore, version: int) -> float:
    return (store.path(version + 1) / "manifest.json").stat().st_mtime


def test_who_has_just_read_latest_can_load_that_version_for_a_grace_time(filled):
    end = superseded_at(filled, 1) + 60
    filled.remove_old(keep=1, grace_seconds=60, now=end - 1)
    assert filled.versions() == [0, 1, 2]
    assert load_file(filled.path(1) / "model.safetensors")
    filled.remove_old(keep=1, grace_seconds=60, now=end + 1)
    assert filled.versions() == [2]


def test_a_version_is_not_removed_under_a_reader_and_goes_when_it_has_left(filled):
    later = superseded_at(filled, 1) + 1
    with filled.reading(0) as path, filled.reading(0):
        filled.remove_old(keep=1, now=later)
        assert filled.versions() == [0, 2], "of those without a reader none is kept"
        assert load_file(path / "model.safetensors")
        filled.publish(3, writer(3))
        assert filled.versions() == [0, 2, 3], "a publication leaves leases alone"
    filled.remove_old(keep=1, now=later)
    assert names(filled) == {"LATEST", "v3"}


def test_a_lease_is_renewed_while_its_reader_lives_and_void_after_it_died(filled, monkeypatch):
    monkeypatch.setattr(lease_module, "_RENEWAL_SECONDS", 0.01)
    with filled.reading(0):
        (lease,) = filled.root.glob(".v0.*.lease")
        os.utime(lease, (0, 0))
        deadline = time.monotonic() + 10
        while lease.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        filled.remove_old(keep=1)
        assert filled.versions() == [0, 2]
    dead = filled.root / ".v0.killed.lease"
    dead.touch()
    filled.remove_old(keep=1, now=dead.stat().st_mtime + 61)
    assert names(filled) == {"LATEST", "v2"}


def test_a_reader_that_may_not_write_reads_without_a_lease(filled, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr(Path, "touch", refuse)
    with filled.reading(1) as path:
        assert load_file(path / "model.safetensors")
    with pytest.raises(ValueError, match="holds no version 7"), filled.reading(7):
        pass
