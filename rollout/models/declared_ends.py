"""Ids of the tokens that end a completion, as declared by the files of a model directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollout.models.json_file import read_json

__all__ = ["CONFIG", "GENERATION", "declared_ends", "default_ends"]

GENERATION, CONFIG = "generation_config.json", "config.json"


def declared_ends(directory: Path) -> dict[str, tuple[int, ...]]:
    """Return the token ids that each file declares. A file that declares none has an empty tuple; a missing file has
    no entry.

    Raises:
        ValueError: a file is not JSON, or names something else than token ids.
    """
    return {
        name: _ends_in(read_json(directory / name), directory / name)
        for name in (GENERATION, CONFIG)
        if (directory / name).is_file()
    }


def default_ends(declared: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the ids that transformers uses: those of generation_config.json if it declares any, else those of
    config.json."""
    return declared.get(GENERATION) or declared.get(CONFIG) or ()


def _ends_in(content: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    """Return the `eos_token_id` of one file's content."""
    value = content.get("eos_token_id")
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise ValueError(f"eos_token_id of {path} must be token ids >= 0, got {value!r}")
    return tuple(dict.fromkeys(ids))
