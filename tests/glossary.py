"""The metrics that docs/guide/metrics.md explains."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "guide" / "metrics.md"
ROWS = re.findall(r"^\| `([\w/*]+)` \| (.+?) \| (.+?) \| (.*?) ?\|$", PAGE.read_text(), re.M)
NAMES = [name for name, *_ in ROWS]


def unexplained(names: Iterable[str]) -> set[str]:
    """Return the metrics (names with a slash) that the page does not list."""
    metrics = {name for name in names if "/" in name}
    return {name for name in metrics if not any(fnmatchcase(name, known) for known in NAMES)}
