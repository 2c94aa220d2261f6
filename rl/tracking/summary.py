"""Summary at the end of a run: accuracy before and after, some answers, and paths of all files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from rl.tracking.answers import AnswerPair, choose_answers, print_answers

MAX_WIDTH = 100


def print_summary(
    console: Console,
    *,
    before: Mapping[str, float] | None,
    after: Mapping[str, float] | None,
    answers: Sequence[AnswerPair],
    paths: Mapping[str, Path],
    answers_title: str = "Answers to held-out prompts",
) -> None:
    """Print the summary.

    Args:
        console: where to.
        before: the first evaluation's metrics; None when there was none.
        after: the last evaluation's metrics.
        answers: those of the prompts that both evaluations have; a few are shown.
        paths: what a user may want to open, by name; under "W&B" the directory that `wandb sync` uploads.
        answers_title: what the answers are.
    """
    width = min(console.width, MAX_WIDTH)
    if _has_accuracy(before) and _has_accuracy(after):
        _print_section(console, "Held-out accuracy", width=width)
        console.print(_accuracy_text(before, after, answers), width=width)
    else:
        _print_section(console, "Held-out reward", width=width)
        console.print(_reward_text(before, after), width=width)
    if answers:
        _print_section(console, answers_title, width=width)
        print_answers(console, choose_answers(answers), width=width)
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


def _has_accuracy(metrics: Mapping[str, float] | None) -> bool:
    """Returns whether the scores of an evaluation are shares; true of none."""
    return metrics is None or "evaluation/accuracy" in metrics


def _reward_text(before: Mapping[str, float] | None, after: Mapping[str, float] | None) -> Text:
    """The mean of scores that are no shares, since some are below 0 or above 1."""
    means = [f"{m['evaluation/reward_mean']:.3f}" for m in (before, after) if m is not None]
    total = sum(m["evaluation/num_prompts"] for m in (after or before,) if m is not None)
    note = f"  mean score of {total:,.0f} prompts; some scores are below 0 or above 1"
    return Text.assemble("  ", (" -> ".join(means), "bold"), (note, "dim"))


def _accuracy_text(
    before: Mapping[str, float] | None,
    after: Mapping[str, float] | None,
    answers: Sequence[AnswerPair],
) -> Text:
    if after is None:
        return Text("  no evaluation was made after training", "dim")
    if before is None:
        return Text.assemble("  ", (_percent(after), "bold"), f"  {_count(after)}")
    gained = 100 * (after["evaluation/accuracy"] - before["evaluation/accuracy"])
    return Text.assemble(
        "  ",
        (f"{_percent(before)} -> {_percent(after)}", "bold"),
        (f"   {gained:+.1f} points", "bold green" if gained > 0 else "bold red"),
        f"\n  {_count(before)} before, {_count(after)} after{_of_the_same(before, after, answers)}",
        (", greedy, on prompts never trained on", "dim"),
    )


def _of_the_same(
    before: Mapping[str, float], after: Mapping[str, float], answers: Sequence[AnswerPair]
) -> str:
    """The accuracy after, on the prompts that were asked before; empty where these are all."""
    if not answers or before["evaluation/num_prompts"] == after["evaluation/num_prompts"]:
        return ""
    mean = sum(pair.after["reward"] or 0.0 for pair in answers) / len(answers)
    return f" ({mean:.1%} of the first {len(answers):,})"


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


def _shown(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
