"""The tokens of a task's own answers, for supervised fine-tuning."""

import pytest

from rl.tasks.form import PromptForm
from rl.tasks.prompts import make_prompt, problem_of
from rl.trainer.collect.demonstrations import Demonstrations
from tests.rollout.text.byte_tokenizers import byte_tokenizer

ROW = {"question": "1 + 1", "answer": "2"}


def test_an_answer_ends_as_the_template_ends_a_turn_whatever_the_tokenizers_end_is():
    made = Demonstrations(byte_tokenizer(eos_token="<|endoftext|>"), max_tokens=9, end_of_reply=258)
    assert made(make_prompt(0, problem=problem_of(ROW), form=PromptForm())) == ("2", [*b"2", 258])
    begun = make_prompt(0, problem=problem_of(ROW), form=PromptForm(reply_prefix="A:"))
    assert made(begun) == (" 2", [*b" 2", 258])


def test_a_model_that_nothing_ends_cannot_learn_answers():
    with pytest.raises(ValueError, match="needs a token that ends a reply"):
        Demonstrations(byte_tokenizer(), max_tokens=9, end_of_reply=None)
