"""What is a gold answer, and what is refused when data are loaded."""

import datetime
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from rl.rewards.answers import parse_gold


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("Paris", ("Paris",)),
        (18, ("18",)),
        (10**19, ("10000000000000000000",)),
        (9007199254740993, ("9007199254740993",)),
        (0.00001, ("0.00001",)),
        (1e16, ("1E+16",)),
        (Decimal("1.50"), ("1.50",)),
        (Fraction(-1, 3), ("-1/3",)),
        (True, ("true", "yes")),
        (np.float32(0.1), ("0.1",)),
        (np.int64(7), ("7",)),
        (np.bool_(False), ("false", "no")),
        (np.array(2.5), ("2.5",)),
        (["$2$", "two"], ("$2$", "two")),
        (("a",), ("a",)),
        (np.array([1, 2]), ("1", "2")),
        ("9 eggs at $2 make $18.\n#### 18", ("18",)),
        ("Half is \\boxed{9}.\n#### 18", ("18",)),
        ("so $x = \\boxed{\\frac{1}{2}}$.", ("\\frac{1}{2}",)),
        ("\\boxed 5.", ("5",)),
    ],
)
def test_a_gold_answer_stands_for_texts_with_its_own_digits(value, texts):
    assert parse_gold(value).alternatives == texts


def test_an_integer_keeps_more_digits_than_python_prints():
    assert parse_gold(10**5000).alternatives == ("1" + "0" * 5000,)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"ground_truth": "42", "style": "rule"},
            r"task\.answer_column=reward_model\.ground_truth",
        ),
        (
            {"style": "rule", "ground_truth": "42"},
            r"task\.answer_column=reward_model\.ground_truth",
        ),
        ({}, "empty struct"),
        (float("nan"), "nan is no answer, it is not finite"),
        (float("-inf"), "-inf is no answer"),
        (np.float64("nan"), "not finite"),
        (Decimal("NaN"), "not finite"),
        (b"42", "bytes are no answer"),
        (None, "a missing value is no answer"),
        ("", "it is empty"),
        (" \n", "it is empty"),
        ("solution\n####  ", "it is empty"),
        ("\\boxed{}", "it is empty"),
        ([], "an empty list"),
        ([["1"], ["2"]], r"task\.answer_column=reward_model\.0"),
        ([{"value": "1"}], "a struct is no answer"),
        (["1", None], "a missing value"),
        (1j, "a complex is no answer"),
        ({1, 2}, "a set is no answer"),
        (datetime.date(2024, 1, 1), "a date is no answer; write it as a text"),
        (np.datetime64("2024-01-01"), "a date is no answer"),
    ],
)
def test_what_is_no_answer_is_refused_with_the_reason_and_the_cure(value, message):
    with pytest.raises(ValueError, match=message):
        parse_gold(value, column="reward_model")
