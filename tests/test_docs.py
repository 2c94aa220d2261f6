import re
from pathlib import Path

from rl.algorithms.registry import ALGORITHMS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "algorithms.md").read_text()


def test_the_index_of_algorithms_lists_every_file_and_no_other():
    root = ROOT / "rl" / "algorithms"
    paths = {str(path.relative_to(root)) for path in root.rglob("*.py")}
    files = {path for path in paths if not path.endswith("__init__.py")}
    assert set(re.findall(r"\.\./rl/algorithms/([\w/]+\.py)\)", PAGE)) == files


def test_the_index_names_every_option_of_the_group_and_each_has_a_schema():
    options = {path.stem for path in (ROOT / "conf" / "algorithm").glob("*.yaml")}
    named = {
        name
        for cell in re.findall(r"^\| (`.*?`) \|", PAGE, re.M)
        for name in re.findall(r"`(\w+)`", cell)
    }
    assert named == options
    assert options == {*ALGORITHMS, "reinforce_pp_baseline"}


def test_every_paper_of_a_file_is_in_its_row():
    for path in sorted((ROOT / "rl" / "algorithms").rglob("*.py")):
        docstring = path.read_text().split('"""')[1] if path.stat().st_size else ""
        (row,) = [line for line in PAGE.splitlines() if f"/{path.name})" in line] or [""]
        papers = set(re.findall(r"arxiv\.org/abs/([\d.]+\d)", docstring))
        missing = papers - set(re.findall(r"arxiv\.org/abs/([\d.]+\d)", row))
        # ScaleRL is named for a constant alone
        assert missing <= {"2510.13786"}, f"{path.name}: {missing}"
