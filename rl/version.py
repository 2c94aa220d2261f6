"""Version of the running code: the package's version, and the commit of the checkout or of the wheel's source."""

import functools
import importlib.metadata
import subprocess
from pathlib import Path

__all__ = ["commit", "version", "version_text"]

_BUILT_FROM = Path(__file__).resolve().parent / "built_from.txt"
"""File with the commit that a wheel was built from; a checkout does not have it."""
_CHECKOUT = Path(__file__).resolve().parents[1]


@functools.cache
def version() -> str:
    """Return the version of the installed package, or "unknown" if it is not installed."""
    try:
        return importlib.metadata.version("paceline")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@functools.cache
def commit() -> str:
    """Return the commit of the checkout that the code is imported from, with `-dirty` if files were changed.

    The working directory does not matter. An installed wheel contains the commit that it was built from. The result
    is empty if no commit is known, for example in a copy without .git, or without git.
    """
    if _BUILT_FROM.is_file():
        return _BUILT_FROM.read_text(encoding="utf-8").strip()
    if not (_CHECKOUT / ".git").exists():
        return ""
    command = [
        "git",
        "-C",
        str(_CHECKOUT),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def version_text() -> str:
    """Return version and commit in one line."""
    return f"paceline {version()}" + f", commit {commit()}" * bool(commit())
