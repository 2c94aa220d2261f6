"""Cache of models that are converted or generated once per machine: `PACELINE_CACHE` or ~/.cache/paceline."""

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rollout.weights.atomic import publish_directory


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Return `target`; if it does not exist, `build(staged)` fills it first.

    Other processes that call this at the same time wait for the first. A build that is killed or raises creates no
    `target`; the next build removes what it left.

    Raises:
        ValueError: the cache directory cannot be created or written to.
    """
    if target.is_dir():
        return target
    lock = target.with_name(f".{target.name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise ValueError(
            f"the cache of models, {target.parent}, cannot be written to: {error.strerror}; set PACELINE_CACHE to a "
            "directory that can be written to"
        ) from error
    staged = target.with_name(f".{target.name}.building")
    with _locked(lock):
        if target.is_dir():  # another process was first
            return target
        if staged.exists():  # left by a killed build, since this process holds the lock
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
