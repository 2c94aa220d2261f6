"""Read leases: files beside a published version that say that a reader is still at it.

root/.v7.<id>.lease     renewed while its reader lives; void a minute after that died
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
    """Hold a lease on a version while the block runs; none where its store cannot be written to, or where nothing is published.

    Args:
        directory: of the version, or any other one.
    """
    if not (directory.parent / "LATEST").is_file():
        yield
        return
    lease = directory.with_name(f".{directory.name}.{uuid4().hex}.lease")
    try:
        lease.touch()
    except OSError:  # a grace time is what such a reader has
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
    """Whether a reader has renewed a lease on a version lately; void leases are removed.

    Args:
        directory: of the version.
        now: the time in seconds since the epoch; None: as the clock says.
    """
    now = time.time() if now is None else now
    held = False
    for lease in directory.parent.glob(f".{directory.name}.*.lease"):
        try:
            if now - lease.stat().st_mtime < _LEASE_SECONDS:
                held = True
            else:
                lease.unlink()
        except FileNotFoundError:  # its reader has just left
            continue
    return held
