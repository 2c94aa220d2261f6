"""Published weights on disk: immutable Hugging Face checkpoints, and a pointer to the newest.

root/v7/{config.json, model.safetensors, ..., manifest.json}
root/LATEST                                                     contains "v7"

One process publishes, and any number of processes follow `LATEST`. An old version stays for a grace time, and longer
if a reader holds a lease on it. A version is first written to a hidden directory, then synced to disk, then renamed,
and last announced in `LATEST`. After a crash the earlier `LATEST` is still valid; the next `publish` removes what the
killed run left, including a version that was renamed but not announced.
"""

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from safetensors import safe_open

from rollout.weights.atomic import publish_directory, write_text_atomically
from rollout.weights.lease import hold_lease, is_held
from rollout.weights.manifest import MANIFEST, FileSpec, Manifest, TensorSpec, describe_tensor


class WeightStore:
    def __init__(self, root: Path) -> None:
        self.root = root

    def publish(self, version: int, write: Callable[[Path], None]) -> Path:
        """Store what `write(directory)` puts into an empty directory, and announce it in `LATEST`.

        Raises:
            ValueError: `version` is not higher than the latest.
            RuntimeError: `write` left no Hugging Face checkpoint.
        """
        latest = self.latest()
        if version < 0 or (latest is not None and version <= latest):
            raise ValueError(
                f"published versions are immutable and grow from 0: got {version} for {self.root}, "
                f"whose latest is {latest}; publish a higher one"
            )
        self.root.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers(version)
        staged = self.root / f".v{version}.staged"
        staged.mkdir()
        try:
            write(staged)
            _check_checkpoint(staged)
            manifest = _describe(staged, version)
            (staged / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        except Exception:
            shutil.rmtree(staged)  # the disk may be full, so free the space
            raise
        target = self.root / f"v{version}"
        publish_directory(staged, target)
        write_text_atomically(self.root / "LATEST", f"v{version}\n")
        return target

    def latest(self) -> int | None:
        """Return the newest announced version; None before the first."""
        pointer = self.root / "LATEST"
        if not pointer.exists():
            return None
        version = _parse(pointer.read_text(encoding="utf-8").strip())
        if version is None or not (self.root / f"v{version}").is_dir():
            raise RuntimeError(
                f"{pointer} must name a version in the same directory, got {pointer.read_text()!r}"
            )
        return version

    def versions(self) -> list[int]:
        """Return the versions that are announced and not removed, oldest first."""
        latest = self.latest()
        return [] if latest is None else [v for v in self._directories() if v <= latest]

    def path(self, version: int) -> Path:
        """Return the directory of `version`.

        Raises:
            ValueError: the version was not published, or has been removed.
        """
        if version not in self.versions():
            raise ValueError(
                f"{self.root} holds no version {version}; it holds {self.versions() or 'none'}"
            )
        return self.root / f"v{version}"

    def manifest(self, version: int) -> Manifest:
        return Manifest.from_json((self.path(version) / MANIFEST).read_text(encoding="utf-8"))

    def verify(self, version: int) -> None:
        """Read `version` again and compare it with its manifest.

        Raises:
            RuntimeError: files or tensors differ from the manifest; the message names them.
        """
        expected = self.manifest(version)
        files = _differences(expected.files, _file_specs(self.path(version)))
        # a damaged file may not open as safetensors, so tensors are read only if the files are right
        tensors = [] if files else _differences(expected.tensors, _tensor_specs(self.path(version)))
        if files or tensors:
            raise RuntimeError(
                f"weights {self.path(version)} differ from their {MANIFEST}: {'; '.join(files + tensors)}"
            )

    def remove_old(
        self, keep: int, *, grace_seconds: float = 0.0, now: float | None = None
    ) -> None:
        """Remove old versions. Keep the `keep` newest, those within the grace time, and those on which a reader holds
        a lease.

        Args:
            keep: number of versions to keep; at least 1, so that the latest always stays.
            grace_seconds: time that a version stays after a newer one, so that a reader that has just read `LATEST`
                can load it.
            now: time in seconds since the epoch; None: the current time.

        Raises:
            ValueError: `keep` is less than 1.
        """
        if keep < 1:
            raise ValueError(f"keep must be >= 1, the latest version always stays, got {keep}")
        now = time.time() if now is None else now
        versions = self.versions()
        newer = dict(pairwise(versions))
        for version in versions[:-keep]:
            superseded_at = (self.path(newer[version]) / MANIFEST).stat().st_mtime
            if now - superseded_at < grace_seconds or is_held(self.path(version), now=now):
                continue
            # renaming first ensures that no reader finds half a version
            removed = self.path(version).rename(self.root / f".v{version}.removed")
            shutil.rmtree(removed)

    @contextmanager
    def reading(self, version: int) -> Generator[Path]:
        """Hold a lease on a version, which keeps it from being removed, while the block runs. Yields its directory.

        Raises:
            ValueError: the version was not published, or has been removed.
        """
        with hold_lease(self.path(version)):
            yield self.path(
                version
            )  # checked again: it may have been removed before the lease began

    def _directories(self) -> list[int]:
        versions = (_parse(path.name) for path in self.root.iterdir() if path.is_dir())
        return sorted(version for version in versions if version is not None)

    def _remove_leftovers(self, next_version: int) -> None:
        """Remove what killed runs left: partly written or partly removed directories, and versions never
        announced."""
        partial = [
            p for p in self.root.iterdir() if re.fullmatch(r"\.v\d+\.(staged|removed)", p.name)
        ]
        unannounced = [self.root / f"v{v}" for v in self._directories() if v >= next_version]
        for path in partial + unannounced:
            shutil.rmtree(path)


def _parse(name: str) -> int | None:
    match = re.fullmatch(r"v(0|[1-9]\d*)", name)
    return None if match is None else int(match[1])


def _check_checkpoint(directory: Path) -> None:
    if not (directory / "config.json").is_file() or not any(directory.glob("*.safetensors")):
        names = sorted(path.name for path in directory.iterdir())
        raise RuntimeError(
            f"a published version must hold config.json and *.safetensors, write left {names}"
        )


def _describe(directory: Path, version: int) -> Manifest:
    return Manifest(version=version, tensors=_tensor_specs(directory), files=_file_specs(directory))


def _file_specs(directory: Path) -> tuple[FileSpec, ...]:
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return tuple(
        FileSpec(
            name=str(path.relative_to(directory)), size=path.stat().st_size, sha256=_sha256(path)
        )
        for path in paths
        if path != directory / MANIFEST
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tensor_specs(directory: Path) -> tuple[TensorSpec, ...]:
    specs = []
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            specs += [describe_tensor(name, file.get_tensor(name)) for name in file.keys()]  # noqa: SIM118
    return tuple(specs)


def _differences(
    expected: tuple[FileSpec, ...] | tuple[TensorSpec, ...],
    got: tuple[FileSpec, ...] | tuple[TensorSpec, ...],
) -> list[str]:
    before, after = {s.name: s for s in expected}, {s.name: s for s in got}
    missing = [f"{name} is missing" for name in before if name not in after]
    extra = [f"{name} is not in the manifest" for name in after if name not in before]
    changed = [f"{n} has changed" for n in before if n in after and after[n] != before[n]]
    return missing + extra + changed
