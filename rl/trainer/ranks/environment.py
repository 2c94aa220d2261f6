"""Checks of the environment variables that torchrun sets, and of leftovers among them."""

import os
from collections.abc import Mapping

__all__ = ["half_environment", "is_first_process"]

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def half_environment(environ: Mapping[str, str] = os.environ) -> str:
    """Describes torchrun variables that are set only in part, with the cure; empty if all or none are set."""
    left = [name for name in ("RANK", "WORLD_SIZE") if name in environ]
    missing = [name for name in _NEEDED if name not in environ]
    if not left or not missing:
        return ""
    said = ", ".join(f"{name}={environ[name]}" for name in left)
    return (
        f"{said} is set in the environment without {', '.join(missing)}, which is half of what torchrun sets; "
        f"unset {' '.join(left)}, or start the processes by torchrun"
    )


def is_first_process(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one."""
    return bool(half_environment(environ)) or environ.get("RANK", "0") == "0"
