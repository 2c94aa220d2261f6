import re
from fnmatch import fnmatchcase

from tests.glossary import NAMES, PAGE, ROWS, unexplained
from tests.test_docs import ROOT

# names that the code builds from parts
BUILT = (
    "fleet/*_seconds",
    "overprovision/*",
    "seconds/*",
    "speculation/acceptance_at_*",
)


def names_in_code() -> set[str]:
    groups = {name.partition("/")[0] for name in NAMES}
    sources = [
        path.read_text() for room in ("rl", "rollout") for path in (ROOT / room).rglob("*.py")
    ]
    found = {name for text in sources for name in re.findall(r'"(\w+/\w+)"', text)}
    return {name for name in found if name.partition("/")[0] in groups}


def test_every_metric_in_the_code_is_explained():
    assert unexplained(names_in_code()) == set()


def test_every_explained_metric_is_in_the_code():
    found = names_in_code()
    gone = [
        name for name in NAMES if name not in found and not any(fnmatchcase(name, b) for b in BUILT)
    ]
    assert gone == []


def test_every_row_has_a_unit_and_a_meaning_and_no_name_has_two_rows():
    assert len(ROWS) == len(re.findall(r"^\| `", PAGE.read_text(), re.M)) > 80
    assert len(set(NAMES)) == len(NAMES)
    assert all(unit.strip() and len(meaning) > 10 for _, unit, meaning, _ in ROWS)


def test_a_name_that_is_not_explained_is_found():
    assert unexplained(["step", "reward/mean", "speculation/acceptance_at_7", "reward/men"]) == {
        "reward/men"
    }
