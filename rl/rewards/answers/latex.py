"""Finds what the last `\\boxed{...}` of a text holds."""

import re

__all__ = ["last_boxed"]

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:(\{)|([^\s{}$]+))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    """Returns the content of the last complete box, braced or bare as in `\\boxed 5`; None if there is none."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    ends = _closing_braces(text)
    for box in reversed(boxes):
        if box[2]:
            return box[2].rstrip(".,")
        if (end := ends.get(box.start(1))) is not None:
            return text[box.end() : end]
    return None


def _closing_braces(text: str) -> dict[int, int]:
    """Returns the index of the brace that closes each one that opens; escaped ones are text."""
    ends, opened = {}, []
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            ends[opened.pop()] = brace.start()
    return ends
