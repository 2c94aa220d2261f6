"""Directory in which this machine keeps compiled kernels and converted models."""

import os
from pathlib import Path

__all__ = ["default_cache_dir"]


def default_cache_dir() -> Path:
    """`PACELINE_CACHE`, or ~/.cache/paceline."""
    return Path(os.environ.get("PACELINE_CACHE") or Path.home() / ".cache" / "paceline")
