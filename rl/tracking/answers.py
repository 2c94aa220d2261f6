"""Answers to held-out prompts for people to look at: before and after training, side by side, right and wrong in their true share."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["AnswerPair", "choose_answers", "pair_answers", "print_answers"]

Row = Mapping[str, Any]
"""A row with the keys of `SAMPLE_COLUMNS`."""

NUM_SHOWN = 10
_MAX_CHARS = 160
_LONG_CHARS = 30
"""Texts longer than this get room around their rows."""


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """The answers of two policies to one prompt."""

    before: Row | None
    """None: only one evaluation is shown."""
    after: Row


def pair_answers(before: Sequence[Row] | None, after: Sequence[Row]) -> list[AnswerPair]:
    """The prompts that both evaluations have, in the order of the second; every prompt, where there is no first.

    Args:
        before: rows of the first evaluation, one per prompt; None where there was none.
        after: rows of the second.
    """
    if before is None:
        return [AnswerPair(None, row) for row in after]
    first = {row["prompt_id"]: row for row in before}
    return [AnswerPair(first[row["prompt_id"]], row) for row in after if row["prompt_id"] in first]


def choose_answers(pairs: Sequence[AnswerPair], count: int = NUM_SHOWN) -> list[AnswerPair]:
    """Choose at most `count` answers: those right and wrong, before and after, in the share that they have among all.

    The kinds (right before and right after, and so on) get seats by the largest remainders; of each kind the first ones
    are taken, and all stand in their old order.
    """
    kinds: dict[tuple[bool, bool], list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        kinds[pair.before is not None and _is_right(pair.before), _is_right(pair.after)].append(
            index
        )
    count = min(count, len(pairs))
    shares = {kind: count * len(indices) / len(pairs) for kind, indices in kinds.items()}
    seats = {kind: int(share) for kind, share in shares.items()}
    by_remainder = sorted(kinds, key=lambda kind: (seats[kind] - shares[kind], kind))
    for kind in by_remainder[: count - sum(seats.values())]:
        seats[kind] += 1
    chosen = sorted(index for kind, indices in kinds.items() for index in indices[: seats[kind]])
    return [pairs[index] for index in chosen]


def print_answers(console: Console, pairs: Sequence[AnswerPair], *, width: int) -> None:
    """Print a table: prompt, the answer that is expected, and those that were given."""
    has_before = any(pair.before is not None for pair in pairs)
    marks = _Marks(is_ascii=console.options.ascii_only)
    given = [[pair.before, pair.after] if has_before else [pair.after] for pair in pairs]
    texts = [
        [_shortened(pair.after["prompt"]), _shortened(str(pair.after["answer"]))]
        + [_shortened(row["completion"]) if row else "" for row in rows]
        for pair, rows in zip(pairs, given, strict=True)
    ]
    is_long = any(len(text) > _LONG_CHARS for row in texts for text in row)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), leading=int(is_long))
    for name in [
        "  prompt",
        "expected",
        *(("  before", "  after") if has_before else ("  answer",)),
    ]:
        table.add_column(Text(name, "dim"), overflow="fold")
    for row, (prompt, expected, *answers) in zip(given, texts, strict=True):
        cells = [
            Text.assemble(marks.of(sample["reward"]), " ", (text, "bold")) if sample else Text()
            for sample, text in zip(row, answers, strict=True)
        ]
        table.add_row(Text(f"  {prompt}"), Text(expected), *cells)
    console.print(table, width=width)


class _Marks:
    """Signs for right and wrong.

    Args:
        is_ascii: the terminal has no others.
    """

    def __init__(self, *, is_ascii: bool) -> None:
        self._right, self._wrong = ("+", "x") if is_ascii else ("✓", "✗")

    def of(self, reward: float | None) -> Text:
        if reward is None:
            return Text("?", "yellow")
        if reward not in (0, 1):
            return Text(f"{reward:.2f}", "yellow")  # of a scorer that gives credit for parts
        return Text(self._right, "bold green") if reward else Text(self._wrong, "bold red")


def _is_right(row: Row) -> bool:
    return row["reward"] is not None and row["reward"] >= 1


def _shortened(text: str) -> str:
    """`text` on one line; of a longer one the middle goes, since a completion's answer stands at its end."""
    line = " ".join(text.split())
    if len(line) <= _MAX_CHARS:
        return line
    head = _MAX_CHARS // 3
    return f"{line[:head]} ... {line[len(line) - (_MAX_CHARS - head) :]}"
