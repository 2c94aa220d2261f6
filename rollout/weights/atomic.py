"""Writing of directories and small files that are complete or absent, even after a power cut."""

import os
from pathlib import Path


def publish_directory(staged: Path, target: Path) -> None:
    """Make `staged` durable and its files read-only, and rename it to `target`, which must not exist.

    Both must be on one filesystem. The files get the read permissions of the directory, because safetensors writes
    them with mode 0600.
    """
    readable = staged.stat().st_mode & 0o444
    for path in staged.rglob("*"):
        if path.is_file():
            path.chmod(readable)
        _sync(path)
    _sync(staged)
    staged.rename(target)
    _sync(target.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """Replace the content of `path`; a reader sees either the old text or the new one."""
    staged = path.with_name(f".{path.name}.new")
    staged.write_text(text, encoding="utf-8")
    _sync(staged)
    staged.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
