"""Errors of a disk that is full, as whoever wrote to it reports them."""

import errno

__all__ = ["is_disk_full"]

_ERRNOS = {errno.ENOSPC, errno.EDQUOT}


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that it follows from, says that no space is left, or none within a quota."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        # safetensors says it in its text alone
        if isinstance(one, OSError) and one.errno in _ERRNOS:
            return True
        if any(f"(os error {number})" in str(one) for number in _ERRNOS):
            return True
        pending += [one.__cause__, one.__context__]
    return False
