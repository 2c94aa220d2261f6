"""What a user sees when training is over: what was learned, three answers, and where everything is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

MAX_WIDTH = 100
NUM_SAMPLES = 3
_MAX_PROMPT_CHARS, _MAX_COMPLETION_CHARS = 160, 240


def print_summary(
    console: Console,
    *,
    before: Mapping[str, float] | None,
    after: Mapping[str, float] | None,
    samples: Sequence[Mapping[str, Any]],
    paths: Mapping[str, Path],
) -> None:
    """Print the summary.

    Args:
        console: where to.
        before: the first evaluation's metrics; None when there was none.
        after: the last evaluation's metrics.
        samples: rows with the keys of `SAMPLE_COLUMNS`; the first three are shown.
        paths: what a user may want to open, by name; under "W&B" the directory that `wandb sync` uploads.
    """
    width = min(console.width, MAX_WIDTH)
    _print_section(console, "Held-out accuracy", width=width)
    console.print(_accuracy_text(before, after), width=width)
    if samples:
        _print_section(console, "Answers", width=width)
        console.print(_sample_table(samples[:NUM_SAMPLES]), width=width)
    _print_section(console, "Files", width=width)
    label_width = max(map(len, paths), default=0) + 2
    for name, path in paths.items():
        # soft wrap: a path must stay in one piece to be copied
        line = Text.assemble("  ", (name.ljust(label_width), "dim"), str(_shown(path)))
        console.print(line, soft_wrap=True)
    if "W&B" in paths and paths["W&B"].name.startswith("offline-run-"):
        line = Text.assemble(
            "  ",
            ("".ljust(label_width)),
            ("to upload it: ", "dim"),
            f"wandb sync {_shown(paths['W&B'])}",
        )
        console.print(line, soft_wrap=True)
    console.print()


def _print_section(console: Console, title: str, *, width: int) -> None:
    console.print()
    console.print(Rule(Text(title, "bold"), align="left", style="dim"), width=width)


def _accuracy_text(before: Mapping[str, float] | None, after: Mapping[str, float] | None) -> Text:
    if after is None:
        return Text("  not evaluated: evaluation.every_steps=0", "dim")
    if before is None:
        return Text.assemble("  ", (_percent(after), "bold"), f"  {_count(after)}")
    gained = 100 * (after["evaluation/accuracy"] - before["evaluation/accuracy"])
    return Text.assemble(
        "  ",
        (f"{_percent(before)} -> {_percent(after)}", "bold"),
        (f"   {gained:+.1f} points", "bold green" if gained > 0 else "bold red"),
        f"\n  {_count(before)} before, {_count(after)} after",
        (", greedy, on prompts never trained on", "dim"),
    )


def _percent(metrics: Mapping[str, float]) -> str:
    return f"{metrics['evaluation/accuracy']:.1%}"


def _count(metrics: Mapping[str, float]) -> str:
    total = metrics["evaluation/num_prompts"]
    points = metrics["evaluation/accuracy"] * total
    is_whole = abs(points - round(points)) < 1e-3
    return (
        f"{points:,.0f} of {total:,.0f} right"
        if is_whole
        else f"{points:,.1f} of {total:,.0f} points"
    )


def _sample_table(samples: Sequence[Mapping[str, Any]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=4)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for index, sample in enumerate(samples):
        if index:
            table.add_row()
        table.add_row(
            _mark(sample["reward"]), "prompt", Text(_shortened(sample["prompt"], _MAX_PROMPT_CHARS))
        )
        table.add_row(
            "", "answer", Text(_shortened(sample["completion"], _MAX_COMPLETION_CHARS), "bold")
        )
        table.add_row("", "expected", Text(str(sample["answer"])))
    return table


def _mark(reward: float | None) -> Text:
    if reward is None:
        return Text("  ?", "yellow")
    if 0 < reward < 1:
        return Text(f"{reward:.2f}", "yellow")  # of a scorer that gives credit for parts
    return Text("  ✓", "bold green") if reward > 0 else Text("  ✗", "bold red")


def _shortened(text: str, max_chars: int) -> str:
    """`text` on one line; of a longer one the middle goes, since a completion's answer stands at its end."""
    line = " ".join(text.split())
    if len(line) <= max_chars:
        return line
    head = max_chars // 3
    return f"{line[:head]} … {line[len(line) - (max_chars - head) :]}"


def _shown(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
