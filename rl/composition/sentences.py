"""Short versions of the long errors of Hydra and OmegaConf, each in one sentence."""

import difflib
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from rl.composition.keys import known_keys, options_with, suggest
from rl.composition.tree import groups, options

__all__ = ["in_one_sentence"]

_CHOICE = re.compile(r"Invalid value '(?P<value>.*)', expected one of \[(?P<names>.*)\]")
_MISSING = re.compile(r"Could not find '(?P<group>[^']+)/(?P<option>[^'/]+)'")
_PRIMARY = re.compile(r"Cannot find primary config '[^']*'")
_BOOLEANS = {"True": ("on", "yes"), "False": ("off", "no")}


@contextmanager
def in_one_sentence(root: type) -> Iterator[None]:
    """Replace an error of composition inside the block by a ValueError of one sentence.

    Args:
        root: schema of the primary config, for suggestions.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_sentence(error, root)) from error


def _sentence(error: Exception, root: type) -> str:
    if isinstance(error, OverrideParseException):
        return _override_sentence(error)
    # OmegaConf's error, which may be the cause of Hydra's, has the key in a line of its own
    text = f"{error}\n{error.__cause__ or ''}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    keys = [line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")]
    choice = _CHOICE.search(text)
    if keys and choice is not None:
        return _choice_sentence(keys[0], choice["value"], choice["names"].split(", "))
    missing = _MISSING.search(text)
    if missing is not None:
        return _missing_sentence(missing["group"], missing["option"])
    primary = _PRIMARY.search(text)
    if primary is not None:
        return f"{primary[0]} in conf/ or in the directories of --config-dir"
    if not keys:
        return " ".join(itertools.takewhile(lambda line: "search path" not in line, lines))
    if keys[0] not in known_keys(root):
        return (
            f"unknown config key {keys[0]}{suggest(keys[0], root)} ({lines[0].partition(':')[0]})"
        )
    owners = options_with(keys[0])
    if owners and ("is not in struct" in text or "not in '" in text):
        return f"{keys[0]} is a key of {' or '.join(owners)} only"
    return f"{keys[0]}: {str(error.__cause__ or error).splitlines()[0]}"


def _override_sentence(error: OverrideParseException) -> str:
    """Return a sentence with the override that cannot be read, and how to quote its value."""
    key, _, value = error.override.partition("=")
    escaped = re.sub(r'(\\*)(["\n])', r"\1\1\\\2", value)
    reason = str(error.message).splitlines()[0]
    return (
        f"{error.override} cannot be read: {reason}; a value with spaces, brackets, quotes or = needs quotes "
        f"within those of the shell: '{key}=\"{escaped}\"'"
    )


def _choice_sentence(key: str, value: str, names: list[str]) -> str:
    """Return a sentence with the values of an enum, and the one that was probably meant."""
    said = f"{key} must be one of {', '.join(names)}, got {value!r}"
    spelt = [name for name in _BOOLEANS.get(value, ()) if name in names]
    if spelt:
        return f"{said}; YAML reads {spelt[0]} as a boolean: quote it, '{spelt[0]}'"
    near = difflib.get_close_matches(value.lower(), names, n=1, cutoff=0.6)
    return f"{said}; did you mean {near[0]}?" if near else said


def _missing_sentence(group: str, option: str) -> str:
    """Return a sentence with the options of a group, and the one that was probably meant."""
    known = options(group)
    if not known:
        return f"there is no group {group}, asked for with {group}={option}; groups are {', '.join(groups())}"
    near = difflib.get_close_matches(option, known, n=1, cutoff=0.6)
    said = f"{group}={option}: {group} is one of {', '.join(known)}"
    return f"{said}; did you mean {near[0]}?" if near else said
