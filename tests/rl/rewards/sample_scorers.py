"""Scorers that misbehave; the completion names the misbehaviour. The pool's processes import this file."""

import os
import subprocess
import sys
import time
from typing import Any

hoard = []


def score(completion: str, row: dict[str, Any]) -> Any:
    """Run the action that the completion names; a completion that is a number is its own score."""
    match completion.split():
        case ["raise"]:
            raise KeyError("no such unit test")
        case ["sys.exit"]:
            sys.exit(0)
        case ["hang"]:
            time.sleep(1e6)
        case ["spin"]:
            while True:
                pass
        case ["hang", "with", "child"]:
            subprocess.run(["sleep", row["sleep"]], check=True)
        case ["exit", code]:
            os._exit(int(code))
        case ["abort"]:
            os.abort()
        case ["hog"]:
            return len(bytearray(4_000_000_000))
        case ["hoard"]:
            while True:
                hoard.append(bytearray(50_000_000))
        case ["held"]:
            return len(hoard)
        case ["sleep", seconds]:
            time.sleep(float(seconds))
            return 1.0
        case ["print"]:
            os.write(1, b"\x00garbage on stdout\n")
            return 1.0
        case ["return", value]:
            return RETURNS[value]
        case ["pid"]:
            return os.getpid()
        case ["pid", "after", seconds]:
            time.sleep(float(seconds))
            return os.getpid()
        case ["pgid"]:
            return os.getpgid(0)
        case ["imported", module]:
            return module in sys.modules
        case [number]:
            return float(number)


RETURNS = {
    "nan": float("nan"),
    "inf": float("inf"),
    "none": None,
    "text": "1.0",
    "complex": 1j,
    "true": True,
    "int": 3,
    "huge": 10**400,
}


class NeedsPreparation:
    """Takes long to prepare, which must not count against the time limit of a job."""

    def __init__(self) -> None:
        self.is_ready = False

    def prepare(self) -> None:
        time.sleep(1.5)
        self.is_ready = True

    def __call__(self, completion: str, row: dict[str, Any], /) -> float:
        return float(self.is_ready)


class CannotPrepare(NeedsPreparation):
    def prepare(self) -> None:
        raise OSError("the grader's data are missing")


class ExitsOnLoad:
    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (5,)
