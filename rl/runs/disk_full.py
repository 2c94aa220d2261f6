"""Detection of a full disk in errors of different libraries."""

import errno

__all__ = ["is_disk_full"]

_ERRNOS = {errno.ENOSPC, errno.EDQUOT}


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, reports that a disk or a quota is full."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        # safetensors reports it only in the error's text
        if isinstance(one, OSError) and one.errno in _ERRNOS:
            return True
        if any(f"(os error {number})" in str(one) for number in _ERRNOS):
            return True
        pending += [one.__cause__, one.__context__]
    return False
