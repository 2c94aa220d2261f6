"""Reads what LaTeX puts in braces."""

__all__ = ["braced", "last_boxed"]

_BOXES = ("\\boxed", "\\fbox")


def last_boxed(text: str) -> str | None:
    """Returns what the last `\\boxed{...}` of a text holds; None if there is no complete one."""
    end = len(text)
    while (start := max(text.rfind(box, 0, end) for box in _BOXES)) >= 0:
        opening = text.find("{", start, start + len("\\boxed") + 2)
        if opening >= 0 and (content := braced(text, opening)) is not None:
            return content
        if opening < 0 and (bare := text[start:].partition("\\boxed ")[2]):
            return bare.partition(" ")[0].rstrip("$.")
        end = start
    return None


def braced(text: str, opening: int) -> str | None:
    """Returns what stands between the brace at `opening` and the one that closes it; None if none does."""
    depth = 0
    for index in range(opening, len(text)):
        if text[index] == "{" and text[index - 1 : index] != "\\":
            depth += 1
        elif text[index] == "}" and text[index - 1] != "\\":
            depth -= 1
            if depth == 0:
                return text[opening + 1 : index]
    return None
