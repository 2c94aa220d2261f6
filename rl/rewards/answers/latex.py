"""Search for the content of the last `\\boxed{...}` in a text."""

import re

__all__ = ["last_boxed"]

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:(\{)|([^\s{}$]+))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    """Return the content of the last complete box, braced or bare as in `\\boxed 5`; None if there is none."""
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
    """Return the index of the closing brace for each opening brace. Escaped braces are text."""
    ends, opened = {}, []
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            ends[opened.pop()] = brace.start()
    return ends
