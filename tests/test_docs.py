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


ADRS = sorted((ROOT / "docs" / "adr").glob("*.md"))


def test_decisions_are_numbered_without_gaps_and_each_says_its_status_context_and_decision():
    assert [int(path.name[:4]) for path in ADRS] == list(range(1, len(ADRS) + 1))
    for number, path in enumerate(ADRS, start=1):
        text = path.read_text()
        assert text.startswith(f"# {number}. "), path.name
        for part in ("**Status:**", "## Context", "## Decision", "## Consequences"):
            assert part in text, f"{path.name}: {part}"


def test_every_relative_link_in_the_docs_leads_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            is_local = "://" not in target
            assert not is_local or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_file_and_folder_that_the_docs_name_exists():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/guide").glob("*.md")]
    named = {
        (page.name, path)
        for page in pages
        for path in re.findall(
            r"`((?:rl|rollout|kernels|scripts|tests|conf)/[\w/]*(?:\.\w+|/))`", page.read_text()
        )
    }
    assert len(named) > 30
    assert {pair for pair in named if not (ROOT / pair[1]).exists()} == set()
