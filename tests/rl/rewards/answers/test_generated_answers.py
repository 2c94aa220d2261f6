"""Generated answers equal themselves and other spellings of their value; near misses do not.

The oracle is `fractions` and `decimal`: every answer is drawn with its exact value and its unit.
"""

import random
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.rewards.mathematics import score_mathematics

SENTENCES = (
    "{}",
    "The answer is {}.",
    "\\boxed{{{}}}",
    "3 + 4 = 7\n#### {}",
    "Answer: {}",
    "So, it must be ...\n{}",
)
UNITS = (
    ("cm", "m"),
    ("dollars", "euros"),
    ("apples", "oranges"),
    ("hours", "minutes"),
    ("kg", "g"),
    ("cm^2", "cm^3"),
)
WORDS = [
    "Paris",
    "London",
    "Tokyo",
    "Evelyn",
    "Wednesday",
    "triangle",
    "north",
    "New Delhi",
    "hexagon",
    "zero-sum",
    "St. Petersburg",
    "C++",
    "naïve",
]


def grouped(number: int, comma: str) -> str:
    return f"{number:,}".replace(",", comma)


def integers(rng: random.Random) -> tuple[Fraction, list[str]]:
    number = rng.choice(
        [rng.randint(-20, 20), rng.randint(-(10**6), 10**6), rng.randint(-(10**30), 10**30)]
    )
    minus = "-" if number < 0 else ""
    size = abs(number)
    spellings = [
        str(number),
        f"{number}.0",
        f"{number}.00",
        f"{minus}{grouped(size, ',')}",
        f"{minus}{grouped(size, '{,}')}",
    ]
    spellings += [
        f"{minus}{grouped(size, ' ')}",
        f"{minus}{grouped(size, chr(92) + ',')}",
        str(number).replace("-", "\u2212"),
    ]
    spellings += [f"{minus}0{size}", f"\\frac{{{2 * number}}}{{2}}"]
    return Fraction(number), spellings


def decimals(rng: random.Random) -> tuple[Fraction, list[str]]:
    places = rng.randint(1, 12)
    number = Decimal(rng.randint(-(10**14), 10**14)).scaleb(-places)
    text = f"{number:f}"
    value = Fraction(number)
    mantissa = str(number.scaleb(places)).replace("E+0", "")
    spellings = [text, f"{text}0", f"{mantissa}e-{places}", f"{mantissa} \\times 10^{{-{places}}}"]
    spellings += [
        f"{mantissa} \u00d7 10^{{-{places}}}",
        f"{mantissa}\\cdot 10^{{-{places}}}",
        f"{value.numerator}/{value.denominator}",
    ]
    return value, spellings


def fractions(rng: random.Random) -> tuple[Fraction, list[str]]:
    above, below = rng.randint(1, 999), rng.randint(2, 999)
    minus = rng.choice(["", "-"])
    value = Fraction(above, below) * (-1 if minus else 1)
    spellings = [f"{minus}{above}/{below}", f"{minus}{2 * above}/{2 * below}"]
    spellings += [f"{minus}\\{name}{{{above}}}{{{below}}}" for name in ("frac", "dfrac", "tfrac")]
    spellings += [
        f"\\frac{{{minus}{above}}}{{{below}}}",
        f"{minus}\\frac{{{{{above}}}}}{{{{{below}}}}}",
    ]
    if above < 10 and below < 10:
        spellings += [f"{minus}\\frac{above}{below}"]
    return value, spellings


def mixed(rng: random.Random) -> tuple[Fraction, list[str]]:
    whole, below = rng.randint(1, 99), rng.randint(2, 12)
    above = rng.randint(1, below - 1)
    value = whole + Fraction(above, below)
    spellings = [
        f"{whole} {above}/{below}",
        f"{whole}\\frac{{{above}}}{{{below}}}",
        f"{whole} \\frac{{{above}}}{{{below}}}",
    ]
    spellings += [f"{value.numerator}/{value.denominator}"]
    vulgar = {
        Fraction(1, 2): "\u00bd",
        Fraction(1, 4): "\u00bc",
        Fraction(3, 4): "\u00be",
        Fraction(2, 3): "\u2154",
    }
    if part := vulgar.get(Fraction(above, below)):
        spellings += [f"{whole}{part}"]
    return value, spellings


NUMBERS: tuple[Callable[[random.Random], tuple[Fraction, list[str]]], ...] = (
    integers,
    decimals,
    fractions,
    mixed,
)


def with_unit(rng: random.Random, spellings: list[str]) -> tuple[list[str], list[str]]:
    """The spellings with a unit, and with another unit that is wrong."""
    right, wrong = rng.choice(UNITS)
    return [f"{text} {right}" for text in spellings], [f"{text} {wrong}" for text in spellings]


def near_misses(rng: random.Random, value: Fraction) -> list[str]:
    """The last digit, the sign, the exponent or the denominator is another."""
    step = Fraction(1, value.denominator)
    misses = [value + step, value - step, value * 10, value / 10, value + Fraction(1, 10**15)]
    misses += [-value] if value else []
    miss = rng.choice([miss for miss in misses if miss != value])
    return [
        f"{miss.numerator}/{miss.denominator}",
        f"\\frac{{{miss.numerator}}}{{{miss.denominator}}}",
    ]


def times(rng: random.Random) -> tuple[list[str], list[str]]:
    left, right = rng.randint(1, 23), rng.randint(10, 59)
    return [f"{left}:{right}", f"{left} : {right}"], [
        f"{left}:{right + 1}",
        f"{right + 1}:{left}",
        f"{left}{right}",
    ]


def tuples(rng: random.Random) -> tuple[list[str], list[str]]:
    items = [rng.randint(-99, 99) for _ in range(rng.randint(2, 4))]
    text = ", ".join(map(str, items))
    other = ", ".join(map(str, [*items[:-1], items[-1] + 1]))
    opening, closing = rng.choice(["()", "[]", "(]", "[)"])
    right = [f"{opening}{text}{closing}", f"\\left{opening}{text.replace(' ', '')}\\right{closing}"]
    return right, [f"{opening}{other}{closing}", f"{'[' if opening == '(' else '('}{text}{closing}"]


def sets(rng: random.Random) -> tuple[list[str], list[str]]:
    items = [str(item) for item in rng.sample(range(-99, 99), 3)]
    turned = [*items[1:], items[0]]
    other = [*items[:-1], str(int(items[-1]) + 100)]
    return (
        [f"\\{{{', '.join(items)}\\}}", f"{{{','.join(turned)}}}", ", ".join(items)],
        [f"\\{{{', '.join(other)}\\}}", ", ".join(items[:-1])],
    )


def words(rng: random.Random) -> tuple[list[str], list[str]]:
    word, other = rng.sample(WORDS, 2)
    return [word, word.upper(), word.lower(), f"\\text{{{word}}}", f"**{word}**"], [
        other,
        f"{word} {other}",
        word[:-1],
    ]


def choices(rng: random.Random) -> tuple[list[str], list[str]]:
    letter, other = rng.sample("ABCDE", 2)
    spellings = [
        letter,
        f"({letter})",
        f"{letter}.",
        f"\\text{{({letter})}}",
        f"({letter}) 38",
        f"option {letter}",
    ]
    return spellings, [other, f"({other})", f"({other}) 38"]


OTHERS = (times, tuples, sets, words, choices)


def check_one(seed: int) -> None:
    """Draws one answer, two of its spellings and a near miss, and scores them in some sentence."""
    rng = random.Random(seed)
    sentence = rng.choice(SENTENCES)
    if rng.random() < 0.7:
        value, right = rng.choice(NUMBERS)(rng)
        wrong = near_misses(rng, value)
        if rng.random() < 0.4:
            right, of_other_unit = with_unit(rng, right)
            wrong += of_other_unit
    else:
        right, wrong = rng.choice(OTHERS)(rng)
    gold = rng.choice(right if rng.random() < 0.5 else right[:2])
    if (gold.startswith("(") and gold.endswith(" 38")) or gold.startswith("option"):
        gold = right[0]
    for text, score in ((gold, 1.0), (rng.choice(right), 1.0), (rng.choice(wrong), 0.0)):
        completion = sentence.format(text)
        assert score_mathematics(completion, {"answer": gold}) == score, (seed, gold, completion)


@settings(max_examples=500, deadline=None)
@given(st.integers(min_value=0, max_value=2**64))
def test_generated_answers_equal_themselves_and_no_near_miss(seed):
    check_one(seed)


@pytest.mark.slow
def test_ten_thousand_generated_answers_and_near_misses():
    for seed in range(10_000):
        check_one(seed)


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_scored_without_an_exception(text):
    for gold in ("18", "x^2", "Paris", "(1, 2)"):
        assert score_mathematics(text, {"answer": gold}) in (0.0, 1.0)


@given(st.text(alphabet="0123456789.,:/-+*^$\\%(){}[] eEx=frac\u00bd\n#", max_size=25))
@settings(max_examples=1000, deadline=None)
def test_any_gold_text_equals_itself(text):
    with suppress(ValueError):  # an empty one
        assert score_mathematics(text, {"answer": text}) == 1.0


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=300, deadline=None)
def test_floats_equal_their_exact_digits_and_not_the_next_float(number):
    digits = format(Decimal(repr(number)), "f")
    assert score_mathematics(f"\\boxed{{{digits}}}", {"answer": number}) == 1.0
    last = str((int(digits[-1]) + 1) % 10)
    assert score_mathematics(f"The answer is {digits[:-1]}{last}", {"answer": number}) == 0.0
