"""Answer columns as public datasets write them: each equals itself, its usual spellings, and no near miss."""

import pytest

from rl.rewards.mathematics import score_mathematics

# gold column, right completions, wrong ones
ROWS = {
    "GSM8K": (
        "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.\nShe makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18",
        ["#### 18", "She makes $18 every day.\n#### 18", "The answer is $18.", "\\boxed{18}", "so 18 dollars"],
        ["#### 9", "The answer is 9.", "9 * 2", "She makes 9 * 2 = 19", "14 + 4 stems from", "#### -18", "#### 180"],
    ),
    "GSM8K, thousands": ("#### 1,450,000", ["1450000", "\\$1,450,000", "#### 1,450,000"], ["1,450,001", "1.45"]),
    "MATH, a solution": (
        "We have $2^3 = 8$, so $x = \\frac{3}{4}$ or $\\boxed{\\frac{3}{4}}$ of it, not $\\frac{1}{4}$.",
        ["$\\frac34$", "\\boxed{0.75}", "The answer is $\\dfrac{3}{4}$.", "\\boxed{3/4}", "\\[ x = \\boxed{\\tfrac{3}{4}} \\]"],
        ["\\boxed{\\frac{1}{4}}", "\\boxed{\\frac{4}{3}}", "\\boxed{-\\frac{3}{4}}", "\\boxed{3 - 4}", "$8$"],
    ),
    "MATH, an interval": (
        "\\left( -\\infty, \\frac{1}{2} \\right]",
        ["\\boxed{(-\\infty, 1/2]}", "The answer is $(-\\infty, 0.5]$."],
        ["\\boxed{(-\\infty, 1/2)}", "\\boxed{[-\\infty, 1/2]}", "\\boxed{(\\infty, 1/2]}", "\\boxed{\\frac{1}{2}}"],
    ),
    "MATH, a text": ("\\text{Evelyn}", ["Evelyn", "\\boxed{\\text{Evelyn}}", "The answer is Evelyn."], ["\\boxed{\\text{Eve}}"]),
    "MATH, an expression": (
        "2\\sqrt{3} + 1",
        ["\\boxed{1+2\\sqrt{3}}", "It is $1 + \\sqrt{12}$"],
        ["\\boxed{2\\sqrt{3}-1}", "\\boxed{2\\sqrt{3}}", "\\boxed{4.46410161514}"],
    ),
    "MATH, roots": ("-2,1", ["\\boxed{1, -2}", "\\boxed{-2, 1}", "The answer is -2 and 1."], ["\\boxed{2,1}", "\\boxed{-2}", "-21"]),
    "AIME, an integer": ("025", ["25", "\\boxed{025}", "\\boxed{25}", "The answer is 025."], ["250", "\\boxed{26}", "-25"]),
    "AIME, a number": (204, ["\\boxed{204}", "204", "Answer: 204"], ["\\boxed{205}", "\\boxed{2 + 4}", "2024"]),
    "SVAMP": ("145.0", ["145", "There are 145 pages.", "\\boxed{145.0}"], ["1450", "144", "-145", "100 + 45"]),
    "SVAMP, a float": (145.0, ["145", "The answer is 145."], ["146", "14.5"]),
    "MultiArith": ("  57\n", ["57", "The answer is 57 cookies.", "#### 57"], ["75", "The answer is 58 cookies.", "60 - 3"]),
    "ASDiv": ("5 (apples)", ["5", "5 apples", "The answer is 5 apples.", "\\boxed{5}"], ["6", "5 oranges", "\\boxed{-5}"]),
    "MathQA": ("a", ["a", "(a)", "A", "The answer is a ) 38.", "The correct option is a", "answer: a)"], ["b", "The answer is (b) 38."]),
    "AQuA": ("E", ["E", "The answer is (E).", "\\boxed{E}", "\\boxed{\\text{(E)}}", "I choose (E)"], ["D", "The answer is (D), not E."]),
    "OlympiadBench": (["$2$"], ["\\boxed{2}", "The answer is $2$.", "2"], ["\\boxed{3}", "\\boxed{-2}", "$20$"]),
    "OlympiadBench, a formula": (
        ["$\\frac{1}{2 n+2}$"],
        ["\\boxed{\\frac{1}{2n+2}}", "\\boxed{\\frac{1}{2(n+1)}}"],
        ["\\boxed{\\frac{1}{2n+1}}", "\\boxed{\\frac{1}{2n}}"],
    ),
    "OlympiadBench, a unit": ("$5 \\mathrm{~cm}$", ["\\boxed{5 \\text{ cm}}", "5 cm", "5"], ["5 m", "\\boxed{6 \\text{ cm}}"]),
    "DeepScaleR": ("-\\frac{2}{3}", ["\\boxed{-\\frac{2}{3}}", "<think>\\boxed{1}</think> It is \\boxed{-2/3}."], ["\\boxed{\\frac{2}{3}}"]),
    "ORZ": ("1.25\\times10^{5}", ["\\boxed{125000}", "\\boxed{1.25e5}"], ["\\boxed{1.25\\times10^{4}}", "\\boxed{1.25}"]),
    "DAPO": ("34", ["Answer: 34", "Answer: $34$", "**Answer:** 34"], ["Answer: 43", "Answer: 3 + 4"]),
    "Minerva": ("4.5e33", ["$4.5 \\times 10^{33}$", "The answer is 4.5e33."], ["$4.5 \\times 10^{32}$", "4.5e-33"]),
    "AMC": ("142.0", ["\\boxed{142}"], ["\\boxed{143}", "\\boxed{14.2}"]),
    "MMLU": ("B", ["(B)", "B. 1865", "<answer>B</answer>", "The answer is B."], ["(C)", "<answer>A</answer> B"]),
    "BoolQ": (True, ["yes", "True", "The answer is yes."], ["no", "False"]),
    "a list": (["Paris", "the city of Paris"], ["Paris", "The answer is the city of Paris."], ["London"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROWS)
def test_the_answers_of_public_rows_are_told_from_near_misses(kind):
    gold, right, wrong = ROWS[kind]
    for completion in right:
        assert score_mathematics(completion, {"answer": gold}) == 1.0, completion
    for completion in wrong:
        assert score_mathematics(completion, {"answer": gold}) == 0.0, completion


@pytest.mark.parametrize("kind", ROWS)
def test_the_answers_of_public_rows_equal_themselves(kind):
    gold = ROWS[kind][0]
    for text in gold if isinstance(gold, list) else [str(gold)]:
        assert score_mathematics(text, {"answer": gold}) == 1.0
