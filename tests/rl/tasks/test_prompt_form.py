import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.tasks.config import ArithmeticConfig
from rl.tasks.form import PromptForm

ROW = {"hint": "add", "level": 3, "extra": {"unit": "m"}, "tests": [1], "answer": "9", "a": "x"}


def asked(user_prompt: str, question: str = "6 + 3 =") -> str:
    (message,) = PromptForm(user_prompt=user_prompt, hidden="answer").messages(question, ROW)
    return message["content"]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{question} {hint} {level} {extra.unit}", "6 + 3 = add 3 m"),
        (r"{question} in \boxed{}", r"6 + 3 = in \boxed{}"),
        (r"{question} in \boxed{answer}", r"6 + 3 = in \boxed{answer}"),
        (
            r"{question} \frac{a}{b} x^{n}_{i} \sqrt[3]{a}",
            r"6 + 3 = \frac{a}{b} x^{n}_{i} \sqrt[3]{a}",
        ),
        (r"\text{question}", r"\text6 + 3 ="),
        ("{question} {{hint}} {{answer}}", "6 + 3 = {hint} {answer}"),
        ('{question} as {"x": 1} {} { hint } {1}', '6 + 3 = as {"x": 1} {} { hint } {1}'),
        ("{question}{question}", "6 + 3 =6 + 3 ="),
    ],
)
def test_placeholders_are_filled_and_other_braces_stay(template, text):
    assert asked(template) == text


# of the names that can come up, the row has only the column a
UNKNOWN = re.compile(r"\{(b|[ab]{2,})\}")
TEMPLATES = st.text("ab {}\\\n", max_size=5).filter(lambda text: not UNKNOWN.search(text))


@given(question=st.text(min_size=1), before=TEMPLATES)
def test_a_question_is_never_read_as_a_template(question, before):
    assert asked("{question}", question) == question
    assert asked(f"{before} : {{question}}", question).endswith(f" : {question}")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{question} {gone}",
            r"task\.user_prompt has \{gone\}, which must be .*hint, level, .*\{\{gone\}\}",
        ),
        ("{question} {tests}", r"has \{tests\}"),
        ("{question} {extra}", r"has \{extra\}"),
        ("{question} {tests.a}", r"has \{tests\.a\}"),
        ("{question} {answer}", "must not show the answer"),
    ],
)
def test_what_a_row_cannot_fill_is_refused(template, reason):
    with pytest.raises(ValueError, match=reason):
        asked(template)


def test_the_system_prompt_is_no_place_for_the_question():
    with pytest.raises(ValueError, match=r"task\.system_prompt must be without \{question\}"):
        ArithmeticConfig(system_prompt="Answer {question}")
