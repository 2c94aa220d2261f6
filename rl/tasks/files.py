"""Files that a path refers to: one file, a directory, or a pattern.

If a part of the path exists under exactly this name, it means that file or directory, even if it contains brackets or
stars. Only parts that do not exist are read as patterns.
"""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from rl.tasks.readers import format_of

__all__ = ["find_files", "is_saved_dataset"]

_SPLIT_WORDS = {"train", "training", "validation", "valid", "val", "dev", "test", "eval", "heldout"}
_SAVED_MARKS = ("dataset_dict.json", "state.json")
_METADATA = {"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"}


def find_files(path: str, *, split: str) -> list[Path]:
    """Return the data files that a path refers to, sorted by name; an empty list if it refers to nothing.

    Args:
        path: a file, a directory or a pattern.
        split: split to select if the files of a directory are named by splits.

    Raises:
        ValueError: a directory has no data files, or none of the split.
    """
    found = _expand(Path(path))
    if not found and path.startswith("~"):
        found = _expand(Path(path).expanduser())
    files: list[Path] = []
    for place in found:
        files += _files_in(place, split=split) if place.is_dir() else [place]
    return files


def is_saved_dataset(path: Path) -> bool:
    """Return whether `save_to_disk` of the library datasets wrote a directory."""
    return any((path / mark).is_file() for mark in _SAVED_MARKS)


def _expand(path: Path) -> list[Path]:
    places = [Path(path.anchor)] if path.anchor else [Path()]
    for part in path.relative_to(path.anchor).parts:
        places = [found for place in places for found in _expand_part(place, part)]
    return list(dict.fromkeys(places))


def _expand_part(place: Path, part: str) -> list[Path]:
    if (place / part).exists():
        return [place / part]
    if part == "**":
        below = sorted(folder for folder in place.rglob("*") if folder.is_dir())
        return [place, *below]
    if glob.has_magic(part) and place.is_dir():
        return [place / name for name in sorted(glob.glob(part, root_dir=place))]
    return []


def _files_in(directory: Path, *, split: str) -> list[Path]:
    names = sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    names = [
        name
        for name in names
        if format_of(name) and name.name not in _METADATA and not _is_hidden(name)
    ]
    if not names:
        raise ValueError(f"the directory {directory} has no file of rows, such as rows.jsonl")
    return [directory / name for name in _of_split(names, split=split, directory=directory)]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _of_split(names: Sequence[Path], *, split: str, directory: Path) -> Sequence[Path]:
    """Return the files named by a split, or all files if none is named by any split."""
    words = {name: _words(name) for name in names}
    named = [name for name in names if split.lower() in words[name]]
    others = sorted({word for found in words.values() for word in found & _SPLIT_WORDS})
    if named or not others:
        return named or names
    raise ValueError(
        f"the directory {directory} has no file of the split {split!r}, only of {', '.join(others)}; "
        "name one of these, or one file"
    )


def _words(name: Path) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", name.as_posix().lower()))
