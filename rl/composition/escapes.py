r"""Double-quoted text of a command line, read as YAML reads it.

Hydra leaves a backslash as it is, so that `sampling.stop=["\n"]` would be a backslash and an n. Here `\n`, `\t`, `\r`,
`\"`, `\\`, `\/`, `\xXX`, `\uXXXX` and `\UXXXXXXXX` mean in double quotes what they mean in YAML. Any other escape is refused,
because `"\boxed"` would silently begin with a backspace. Single-quoted and unquoted text stays as it is.
"""

import re

__all__ = ["quoted", "read_escapes"]

_DOUBLE_OR_SINGLE = re.compile(r"""\\.|"((?:\\.|[^"\\])*)"|'(?:\\.|[^'\\])*'""", re.DOTALL)
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", re.DOTALL)
_MEANINGS = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "/": "/"}


def read_escapes(override: str) -> str:
    """Returns an override in which the escapes of double-quoted text are replaced by their meaning.

    Raises:
        ValueError: an escape that YAML does not have, or that nobody wants in a text.
    """
    key, equals, value = override.partition("=")
    if not equals:
        return override

    def read(match: re.Match[str]) -> str:
        text = match[1]
        return match[0] if text is None else quoted(_meaning(text, key=key))

    return key + equals + _DOUBLE_OR_SINGLE.sub(read, value)


def quoted(text: str) -> str:
    """Returns `text` as Hydra's grammar quotes it: a backslash counts as an escape only before a quote, or at the end."""
    return '"' + re.sub(r'(\\*)("|\Z)', lambda m: m[1] * 2 + m[2].replace('"', r"\""), text) + '"'


def _meaning(text: str, *, key: str) -> str:
    def read(match: re.Match[str]) -> str:
        escape = match[1]
        if len(escape) > 1:
            return chr(int(escape[1:], 16))
        if escape == "$":  # keeps OmegaConf from interpolating
            return match[0]
        if escape not in _MEANINGS:
            raise ValueError(
                f"{key}: \\{escape} in double quotes is no escape for a text; write \\\\{escape} for a backslash, or "
                "use single quotes, in which backslashes stay"
            )
        return _MEANINGS[escape]

    return _ESCAPE.sub(read, text)
