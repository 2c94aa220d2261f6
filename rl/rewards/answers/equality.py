"""Equality of a final answer and a gold one: numbers exactly, words as spelled, lists item by item, formulas by
value."""

import re
from dataclasses import dataclass

from rl.rewards.answers.plain import fold, to_plain
from rl.rewards.answers.quantities import parse_quantity
from rl.rewards.answers.symbolic import are_same_formulas, is_arithmetic, is_formula

__all__ = ["are_equal"]

_CHOICE = re.compile(
    r"(?:(?i:option|choice|answer)\s+)?(?:\(\s*([A-Ja-j])\s*\)|([A-J])\s*(?:[.):]|$)|([a-j])\s*(?:[.)]|$))(?P<text>.*)",
    re.DOTALL,
)
_ANOTHER_CHOICE = re.compile(r"\s*(?:or|and|[,/&])?\s*\(?[A-J](?:\)|$)")
_LABELLED = re.compile(r"\(?[A-J]\)\s*(.+)", re.DOTALL)
_OPENING, _CLOSING = "([{⟨", ")]}⟩"
_RELATION = re.compile(r"[<>≤≥≠]|\s\|\s|\\(?:[lg]eq?|[lg]eqslant|[lg]t|neq?)(?![a-zA-Z])")
_VARIABLE = re.compile(r"\\?[A-Za-z]{1,8}(?:_\w|_\{\w+\})?(?:\([a-z]\))?")


@dataclass(frozen=True, slots=True)
class _Sequence:
    """Tuple, interval, set, or list without brackets."""

    brackets: str
    """Opening and closing bracket; empty if there are none."""
    items: tuple[str, ...]

    @property
    def is_ordered(self) -> bool:
        return self.brackets not in ("", "{}")


def are_equal(answer: str, gold: str) -> bool:
    """Return whether an answer, without the prose around it, equals the gold answer."""
    plain, gold_plain = to_plain(answer), to_plain(gold)
    if answer.strip() == gold.strip() or (plain and fold(plain) == fold(gold_plain)):
        return True
    quantity, gold_quantity = parse_quantity(plain), parse_quantity(gold_plain)
    if quantity and gold_quantity:
        return quantity.equals(gold_quantity)
    letter = _choice(gold_plain, is_gold=True)
    if letter:
        return _choice(plain) == letter
    if option := _LABELLED.fullmatch(plain):
        return are_equal(option[1], gold)
    if _define_different(plain, gold_plain):
        return False
    if (
        "=" in plain
        and not _defines_each(plain)
        and ("=" not in gold_plain or _defines(gold_plain))
    ):
        return are_equal(plain.rpartition("=")[2], gold)
    if "=" in gold_plain and _defines(gold_plain):
        return are_equal(answer, gold_plain.rpartition("=")[2])
    items, gold_items = _items(plain), _items(gold_plain)
    if gold_items and (items or len(gold_items.items) == 1):
        return _are_equal_lists(items or _Sequence("", (plain,)), gold_items)
    if items and len(items.items) == 1:
        return are_equal(items.items[0], gold)
    if items or gold_items or (gold_quantity and (is_arithmetic(plain) or _RELATION.search(plain))):
        return False
    if not (is_formula(plain) and is_formula(gold_plain)):
        return False
    return are_same_formulas(
        quantity.to_latex() if quantity else answer,
        gold_quantity.to_latex() if gold_quantity else gold,
    )


def _choice(plain: str, *, is_gold: bool = False) -> str:
    """Return the letter of a multiple choice, as in A, (A) or `A. Paris`; empty if there is none."""
    match = _CHOICE.fullmatch(plain)
    if match is None or (is_gold and match["text"].strip()) or _ANOTHER_CHOICE.match(match["text"]):
        return ""
    return (match[1] or match[2] or match[3]).upper()


def _defines(plain: str) -> bool:
    """Return whether a text gives the value of one variable, as `x = 5` does."""
    left, _, right = plain.partition("=")
    return bool(_VARIABLE.fullmatch(left.strip())) and "=" not in right


def _define_different(plain: str, gold_plain: str) -> bool:
    """Return whether two texts give the values of different variables, as `x = 5` and `y = 5` do."""
    names = [text.partition("=")[0].strip() for text in (plain, gold_plain)]
    both_define = _defines(plain) and _defines(gold_plain)
    return both_define and names[0] != names[1] and all(len(name) == 1 for name in names)


def _defines_each(plain: str) -> bool:
    """Return whether a text lists values of one variable, as `x = 1 or x = 2` does."""
    items = _items(plain)
    if items is None or not all(map(_defines, items.items)):
        return False
    return len({item.partition("=")[0].strip() for item in items.items}) == 1


def _items(plain: str) -> _Sequence | None:
    """Split a list at the commas outside brackets; return None if the text is no list."""
    is_enclosed = plain[:1] in tuple(_OPENING) and _end_of_group(plain) == len(plain) - 1
    inner = plain[1:-1] if is_enclosed else plain
    items, depth, start = [], 0, 0
    for index, char in enumerate(inner):
        depth += (char in _OPENING) - (char in _CLOSING)
        if depth == 0 and char in ",;":
            items.append(inner[start:index])
            start = index + 1
    items.append(inner[start:])
    if not is_enclosed:
        items = [part for item in items for part in re.split(r"(?:^|\s)(?:and|or)\s", item)]
        items = [item for item in items if item.strip()]
        if len(items) < 2:
            return None
    return _Sequence(plain[0] + plain[-1] if is_enclosed else "", tuple(map(str.strip, items)))


def _end_of_group(plain: str) -> int:
    """Return the index of the bracket that closes the first one, of any kind; -1 if there is none."""
    depth = 0
    for index, char in enumerate(plain):
        depth += (char in _OPENING) - (char in _CLOSING)
        if depth == 0:
            return index
    return -1


def _are_equal_lists(answer: _Sequence, gold: _Sequence) -> bool:
    if len(answer.items) != len(gold.items):
        return False
    if len(gold.items) > 1 and answer.brackets and gold.brackets not in ("", answer.brackets):
        return False
    if answer.is_ordered or gold.is_ordered:
        return all(map(are_equal, answer.items, gold.items))
    left = list(gold.items)
    for item in answer.items:
        match = next((index for index, other in enumerate(left) if are_equal(item, other)), None)
        if match is None:
            return False
        del left[match]
    return True
