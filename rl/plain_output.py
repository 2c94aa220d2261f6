"""Fallback for terminals and pipes whose encoding lacks a character: a plain character is printed instead."""

import codecs
import sys
from io import TextIOWrapper

__all__ = ["allow_any_text"]

_HANDLER = "paceline.plain"
_PLAIN = {
    "\u2713": "+",
    "\u2717": "x",
    "\u2192": "->",
    "\u2026": "...",
    "\u00d7": "x",
    "\u2212": "-",
    "\u2014": "-",
}


def allow_any_text() -> None:
    """Make stdout and stderr replace characters that their encoding lacks, so that no print can fail."""
    codecs.register_error(_HANDLER, _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in lacking), error.end
