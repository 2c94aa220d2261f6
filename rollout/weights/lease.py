"""Read leases: files next to a published version which say that a process still reads it.

root/.v7.<id>.lease     renewed while its reader lives; expires one minute after the reader's death
"""

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

__all__ = ["hold_lease", "is_held"]

_RENEWAL_SECONDS = 10.0
_LEASE_SECONDS = 60.0


@contextmanager
def hold_lease(directory: Path) -> Generator[None]:
    """Hold a lease on a version while the block runs. Hold none if its store is read-only, or if `directory` is no
    published version.

    Args:
        directory: directory of the version, or any other directory.
    """
    if not (directory.parent / "LATEST").is_file():
        yield
        return
    lease = directory.with_name(f".{directory.name}.{uuid4().hex}.lease")
    try:
        lease.touch()
    except OSError:  # such a reader has only the store's grace time
        yield
        return
    is_over = threading.Event()

    def renew() -> None:
        while not is_over.wait(_RENEWAL_SECONDS):
            lease.touch()

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        lease.unlink(missing_ok=True)


def is_held(directory: Path, *, now: float | None = None) -> bool:
    """Return whether a reader has renewed a lease on a version within the last minute; remove expired leases.

    Args:
        directory: directory of the version.
        now: time in seconds since the epoch; None: the current time.
    """
    now = time.time() if now is None else now
    held = False
    for lease in directory.parent.glob(f".{directory.name}.*.lease"):
        try:
            if now - lease.stat().st_mtime < _LEASE_SECONDS:
                held = True
            else:
                lease.unlink()
        except FileNotFoundError:  # its reader has just removed it
            continue
    return held
