"""Models that are made once on this machine, and kept: `~/.cache/paceline`, or `PACELINE_CACHE`."""

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rollout.weights.atomic import publish_directory


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Return `target`, filled by `build(staged)` if it does not exist yet.

    Processes that ask at the same time wait for the first. A build that is killed or raises leaves no
    `target`; what it left beside it is removed by the next one.

    Raises:
        ValueError: the directory of the cache cannot be made, or not be written.
    """
    if target.is_dir():
        return target
    lock = target.with_name(f".{target.name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise ValueError(
            f"the cache of models, {target.parent}, cannot be written: {error.strerror}; set PACELINE_CACHE to a "
            "directory that can"
        ) from error
    staged = target.with_name(f".{target.name}.building")
    with _locked(lock):
        if target.is_dir():  # another process was first
            return target
        if staged.exists():  # of a killed build: we hold the lock
            shutil.rmtree(staged)
        staged.mkdir()
        build(staged)
        publish_directory(staged, target)
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the kernel releases it when the process dies
        yield
