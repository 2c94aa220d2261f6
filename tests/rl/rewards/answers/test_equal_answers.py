"""When a completion's final answer equals a gold one, and when not."""

import subprocess
import sys

import pytest

from rl.rewards.mathematics import score_mathematics

# gold answer, completion
RIGHT = [
    ("0.00001", "The answer is 0.00001"),
    ("1e-05", "\\boxed{10^{-5}}"),
    ("1e16", "\\boxed{10000000000000000}"),
    ("1E+16", "\\boxed{10^{16}}"),
    ("Paris", "Paris"),
    ("Paris", "The answer is Paris."),
    ("Paris", "\\boxed{Paris}"),
    ("Paris", "\\boxed{\\text{Paris}}"),
    ("(1, 2)", "(1, 2)"),
    ("(1, 2)", "The answer is (1,2)."),
    ("12:30", "12:30"),
    ("3:4", "3:4"),
    ("3:4", "The ratio is 3:4."),
    ("1 1/4", "5/4"),
    ("5/4", "1 1/4"),
    ("1.25", "$1\\frac{1}{4}$"),
    ("½", "0.5"),
    ("0.5", "½"),
    ("1.5", "1½"),
    ("2024-01-01", "2024-01-01"),
    ("18", "14 + 4 = 18"),
    ("18", "The answer is 14 + 4 = 18."),
    ("18", "\\boxed{14+4=18}"),
    ("18", "\\boxed{x = 18}"),
    ("x = 18", "18"),
    ("18", "$18"),
    ("18", "The answer is $18$."),
    ("18", "\\$18"),
    ("$18", "18 dollars"),
    ("5 cm", "5"),
    ("5 cm", "5 centimeters"),
    ("5\\,\\text{cm}", "5 cm"),
    ("5 \\text{ cm}^2", "5 square centimeters"),
    ("30°", "30"),
    ("30^\\circ", "30 degrees"),
    ("50%", "50"),
    ("50\\%", "0.5"),
    ("1,234", "1234"),
    ("1{,}234", "1,234"),
    ("1 234", "1234"),
    ("1\\,234", "1234"),
    ("1.5 \\times 10^{-5}", "0.000015"),
    ("1.5 \u00d7 10⁻⁵", "1.5e-5"),
    ("1.5e-5", "\\boxed{1.5\\cdot 10^{-5}}"),
    ("10000000000000000000", "10^{19}"),
    ("\u22125", "-5"),
    ("A", "(A)"),
    ("A", "The answer is (A)."),
    ("A", "The answer is A. Paris"),
    ("(B)", "Option B"),
    ("E", "I pick (E)."),
    ("a", "a ) 38"),
    ("025", "25"),
    ("145.0", "145"),
    ("5 (apples)", "5 apples"),
    ("5 (apples)", "5"),
    ("$2$", "\\boxed{2}"),
    ("1+x^2", "It is $x^2+1$"),
    ("x^2+1", "It is $1+x^2$"),
    ("\\frac{1}{2}", "\\boxed{\\dfrac12}"),
    ("\\frac{{1}}{{2}}", "0.5"),
    ("\\frac{\\pi}{2}", "\\boxed{\\pi/2}"),
    ("2\\sqrt{3}", "\\boxed{\\sqrt{12}}"),
    ("\\text{Evelyn}", "Evelyn"),
    ("(-\\infty, 3]", "(-∞, 3]"),
    ("\\{1, 2, 3\\}", "{3, 2, 1}"),
    ("3, 5, 7", "7, 5, 3"),
    ("2 and 3", "3, 2"),
    ("18", "The answer is 18 because 14 + 4 is 18."),
    ("18", "**Answer:** 18"),
    ("18", "**Final answer:**\n18"),
    ("18", "The final answer is: $\\boxed{18}$"),
    ("18", "so 18 eggs are left"),
    ("1.5 million", "1500000"),
    ("yes", "Yes."),
    ("New York", "new york"),
    ("St. Louis", "The answer is St. Louis."),
    ("12:30 PM", "12:30 p.m."),
    ("10^{5}", "It is 100000"),
    ("2^{10}", "1024"),
    ("1010_2", "1010_2"),
    ("-\\frac{1}{2}", "-0.5"),
    ("\\frac{-1}{2}", "-1/2"),
    ("-1\\frac{1}{4}", "-1.25"),
    ("10\\text{ km/h}", "10 km/h"),
    ("10\\sqrt{3}\\text{ cm}", "10\\sqrt{3}"),
    ("$5.50", "5.5"),
    ("18", "<think>20</think> 18"),
    ("18", "<answer>18</answer>"),
    ("18", "18 in total"),
    ("$18", "18 in total"),
    ("5 (apples)", "I have 5 oranges"),
    ("18 \\frac{1}{2}", "18.5"),
    ("0.5", "\\boxed{1/2}"),
    ("6 \\text{ million}", "6000000"),
    ("\\frac{3}{4}\\text{ cup}", "3/4 cups"),
    ("\\left( \\frac{1}{2}, 3 \\right)", "(0.5, 3)"),
    ("x \\in [1,2]", "[1,2]"),
    ("y = 2x + 1", "2x+1"),
    ("y=2x+1", "y = 1 + 2x"),
    ("x=2, x=3", "2, 3"),
    ("x=2 or x=3", "x = 3 or x = 2"),
    ("(0,1) \\cup (2,3)", "(0,1)\\cup(2,3)"),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
    ("0", "0.0"),
    ("-0", "0"),
    ("+5", "5"),
    ("100", "1e2"),
    ("\\pi", "π"),
    ("$-\\$5$", "-$5"),
    ("$1,234.50", "1234.5 dollars"),
    ("3 hours 20 minutes", "3 hours 20 minutes"),
    ("2:30 PM", "2:30 pm"),
    ("09:30", "9:30"),
    ("60 miles per hour", "60 mph"),
    ("60 mph", "60 miles/hour"),
    ("1/2", "\\frac{2}{4}"),
    ("1\\frac14", "\\frac{5}{4}"),
    ("10^{-5}", "10^-5"),
    ("6.02e23", "6.02 x 10^23"),
    ("12 1/2%", "12.5%"),
    ("18", "The answer is 18, which is right."),
    ("18", "The answer is: 18.00"),
    ("18", "Thus, the answer to the question is 18."),
    ("18", "Answer: $\\boxed{18}$."),
    ("18", "The answer is $\\$18$."),
    ("2,3", "(2,3)"),
    ("\\sqrt{2}", "2^{1/2}"),
    ("1+\\sqrt{2}", "\\sqrt{2}+1"),
    ("k>3", "k > 3"),
    ("x \\le 3", "x \\leq 3"),
    ("True", "true"),
    ("7!", "5040"),
    ("\\binom{5}{2}", "10"),
    ("3+2", "5"),
    ("2\\sqrt{2}", "\\sqrt{8}"),
    ("3-4i", "-4i+3"),
    ("A", "a"),
    ("C", "The correct answer is (C) 12"),
    ("C", "The correct answer is C."),
    ("12", "C) 12"),
    ("Wednesday", "The answer is **Wednesday**."),
    ("24\\%", "24 percent"),
    ("$32,348", "32348"),
    ("18", "\\[ \\boxed{18} \\]"),
    ("\\frac{7}{2}", "The final answer is $\\frac{7}{2}$. I hope it is correct."),
    ("7", "7 (seven)"),
    ("0.1", "\\boxed{.1}"),
    (".5", "0.5"),
    (0.00001, "The answer is 0.00001"),
    (1e16, "\\boxed{10000000000000000}"),
    (9007199254740993, "9007199254740993"),
    (10**19, "\\boxed{10^{19}}"),
    (18, "18.0"),
    (True, "Yes."),
    (["$2$", "two"], "The answer is two."),
]
WRONG = [
    ("1e-05", "\\boxed{e-5}"),
    ("Paris", "London"),
    ("(1, 2)", "(1, 3)"),
    ("(1, 2)", "(2, 1)"),
    ("(1, 2)", "[1, 2]"),
    ("12:30", "12:31"),
    ("2024-01-01", "2024-01-02"),
    ("#### 18", "14 + 4 stems from"),
    ("18", "14 + 4 stems from"),
    ("4", "14 + 4 stems from"),
    ("18", "\\boxed{14 + 4}"),
    ("$18", "18 euros"),
    ("5 cm", "5 m"),
    ("5 \\text{ cm}^2", "5 cm"),
    ("50\\%", "0.6"),
    ("1.5e-5", "\\boxed{1.5\\cdot 10^{-6}}"),
    ("9007199254740993", "9007199254740992"),
    ("-5", "5"),
    ("A", "B) 12"),
    ("5 (apples)", "5 oranges"),
    ("\\sqrt{2}", "\\boxed{1.41421356237}"),
    ("3, 5, 7", "7, 5, 4"),
    ("2", "The answer is 2 or 3"),
    ("1", "The answer is 1, 2 or 3"),
    ("18", "The answer is not 18 but 20"),
    ("2", "\\boxed{2e}"),
    ("2", "\\boxed{2x}"),
    ("5", "\\boxed{5!}"),
    ("abc", "cab"),
    ("Paris", "Pairs"),
    ("C++", "C"),
    ("12:30 PM", "12:30 am"),
    ("10^{5}", "It is 10"),
    ("18", "I do not know"),
    ("18", ""),
    ("18", "\\boxed{\\frac{}{"),
    ("18", "\\boxed{9^{9^{9^{9}}}}"),
    ("1/3", "0.333333"),
    ("10\\sqrt{3}\\text{ cm}", "\\boxed{10\\sqrt{3}\\text{ m}}"),
    ("[0, 1)", "[0,1]"),
    ("3.14", "\\pi"),
    ("2\\pi", "6.283185307"),
    ("60 mph", "60 km/h"),
    ("\\frac{1}{2}", "\\frac{1}{3}"),
    ("18", "there are 18 in all, so 17"),
    ("4", "x = 4 or x = 5"),
    ("5", "5.0000000000001"),
    ("1000", "1.000"),
    (0.00001, "\\boxed{e-5}"),
    (9007199254740993, "9007199254740992"),
    (10**19, "10000000000000000001"),
    (True, "No."),
    (["$2$", "two"], "The answer is three."),
    ("0", ""),
]
SENTENCES = (
    "{}",
    "The answer is {}.",
    "\\boxed{{{}}}",
    "3 + 4 = 7.\n#### {}",
    "So\nAnswer: {}\n",
    "{}.",
    "**Answer:** {}",
)


@pytest.mark.parametrize(("gold", "completion"), RIGHT)
def test_equal_answers_are_right(gold, completion):
    assert score_mathematics(completion, {"answer": gold}) == 1.0


@pytest.mark.parametrize(("gold", "completion"), WRONG)
def test_other_answers_are_wrong(gold, completion):
    assert score_mathematics(completion, {"answer": gold}) == 0.0


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_gold_answer_equals_itself_wherever_it_stands(sentence):
    for gold, _ in RIGHT:
        text = str(gold)
        if not isinstance(gold, list) and "####" not in text:
            completion = sentence.format(text)
            assert score_mathematics(completion, {"answer": gold}) == 1.0, completion


def test_the_gold_answer_given_beside_the_row_goes_before_the_rows_own():
    assert score_mathematics("4", {"answer": "5"}, answer="4") == 1.0


def test_numbers_and_words_are_compared_without_sympy():
    script = """if True:
        import sys
        from rl.rewards.mathematics import score_mathematics
        for answer in ("18", "3.5", "\\\\frac{1}{2}", "Paris", "(A)", "12:30", "5 cm", "(1, 2)", "1e-5"):
            assert score_mathematics(f"3 + 4 = 7. The answer is {answer}.", {"answer": answer}) == 1
            assert score_mathematics("The answer is 14 + 4.", {"answer": answer}) == 0
        print([name for name in ("sympy", "math_verify") if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "completion",
    ["\\boxed{9^{9^{9^{9}}}}", "\\boxed{99999!}", "\\boxed{2^{99999}}", "\\boxed{((9!)!)!}", "9" * 100_000,
     "\\boxed{" * 5000, "(" * 50_000, "$" * 9999, "answer is " * 5000, "1," * 30_000, "1 + " * 30_000],
)  # fmt: skip
def test_no_completion_takes_long(completion):
    assert score_mathematics(completion, {"answer": "x^2+1"}) == 0.0
    assert score_mathematics(completion, {"answer": "18"}) == 0.0
