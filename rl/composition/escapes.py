r"""Escapes in double-quoted text of a command line, with their meaning in YAML.

Hydra leaves a backslash unchanged, so `sampling.stop=["\n"]` would be a backslash and an n. Here `\n`, `\t`, `\r`,
`\"`, `\\`, `\/`, `\xXX`, `\uXXXX` and `\UXXXXXXXX` in double quotes have their meaning in YAML. Any other escape is
an error, because `"\boxed"` would silently begin with a backspace. Single-quoted and unquoted text stays unchanged.
"""

import re

__all__ = ["quoted", "read_escapes"]

_DOUBLE_OR_SINGLE = re.compile(r"""\\.|"((?:\\.|[^"\\])*)"|'(?:\\.|[^'\\])*'""", re.DOTALL)
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", re.DOTALL)
_MEANINGS = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "/": "/"}


def read_escapes(override: str) -> str:
    """Return an override in which escapes of double-quoted text are replaced by their meaning.

    Raises:
        ValueError: an escape is not among those listed above.
    """
    key, equals, value = override.partition("=")
    if not equals:
        return override

    def read(match: re.Match[str]) -> str:
        text = match[1]
        return match[0] if text is None else quoted(_meaning(text, key=key))

    return key + equals + _DOUBLE_OR_SINGLE.sub(read, value)


def quoted(text: str) -> str:
    """Return `text` quoted for Hydra's grammar, where a backslash is an escape only before a quote or at the end."""
    return '"' + re.sub(r'(\\*)("|\Z)', lambda m: m[1] * 2 + m[2].replace('"', r"\""), text) + '"'


def _meaning(text: str, *, key: str) -> str:
    def read(match: re.Match[str]) -> str:
        escape = match[1]
        if len(escape) > 1:
            return chr(int(escape[1:], 16))
        if escape == "$":  # stays, so that OmegaConf does not interpolate
            return match[0]
        if escape not in _MEANINGS:
            raise ValueError(
                f"{key}: \\{escape} is not a valid escape in double quotes; write \\\\{escape} for a backslash, or "
                "use single quotes, in which backslashes stay"
            )
        return _MEANINGS[escape]

    return _ESCAPE.sub(read, text)
