"""Scores that depend on the completion alone and mean nothing: for runs that only train."""

import zlib
from typing import Any

__all__ = ["random_score"]


def random_score(completion: str, row: dict[str, Any], /) -> float:
    """0 or 1, by the bits of the completion."""
    return float(zlib.crc32(completion.encode()) & 1)
