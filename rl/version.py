"""The version of the project that runs: its number, and the commit where it runs from a checkout."""

import functools
import importlib.metadata
import subprocess
from pathlib import Path

__all__ = ["commit", "version"]

_CHECKOUT = Path(__file__).resolve().parents[1]


@functools.cache
def version() -> str:
    """Return the version of the installed package; "unknown" where it runs without being installed."""
    try:
        return importlib.metadata.version("paceline")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@functools.cache
def commit() -> str:
    """Return the commit of the checkout that the code is imported from, with `-dirty` after local changes.

    It does not depend on the working directory. Empty where the code is no checkout, as in an installed wheel, or git is missing.
    """
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
