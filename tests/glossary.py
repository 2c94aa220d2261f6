"""The metrics that docs/guide/metrics.md explains."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "guide" / "metrics.md"
ROWS = re.findall(r"^\| `([\w/*]+)` \| (.+?) \| (.+?) \| (.*?) ?\|$", PAGE.read_text(), re.M)
NAMES = [name for name, *_ in ROWS]


def unexplained(names: Iterable[str]) -> set[str]:
    """Those of the names, written with a slash as metrics are, that the page does not have."""
    metrics = {name for name in names if "/" in name}
    return {name for name in metrics if not any(fnmatchcase(name, known) for known in NAMES)}
