import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.tasks.messages import text_of_question, to_question

TURNS = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "tool"]),
        "content": st.text(max_size=9),
    }
)
USER = {"role": "user", "content": "6 + 3 ="}


@given(turns=st.lists(TURNS, max_size=4), asked=st.text(min_size=1).filter(str.strip))
def test_chat_messages_stay_as_they_are_also_when_written_as_text(turns, asked):
    turns.append({"role": "user", "content": asked})
    assert to_question(turns) == tuple(turns) == to_question(json.dumps(turns))
    assert to_question(str(turns)) == tuple(turns)  # what pandas writes into CSV files
    assert text_of_question(to_question(turns)) == asked


@given(text=st.text(min_size=1).filter(str.strip))
def test_a_text_is_a_text(text):
    assert to_question(text) == text_of_question(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        "[INST] hi [/INST]",
        '[{"a": 1}]',
        "[]",
        '["role"]',
        "[" * 9999,
        "[role, content]",
        "['role', 'content'",
        "[{'role': 1, 'content'}]",
    ],
)
def test_a_text_that_only_looks_like_messages_is_a_text(text):
    assert to_question(text) == text


def test_what_a_schema_fills_up_is_left_out_and_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "6 + "}, {"type": "text", "text": "3 ="}]
    filled = [{"role": "user", "content": parts, "tool_calls": None, "name": "Ada"}]
    assert to_question(filled) == ({**USER, "name": "Ada"},)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "a missing value is not a prompt"),
        (7, "a int is not a prompt"),
        (b"6", "a bytes is not a prompt"),
        ({"role": "user", "content": "x"}, "a dict is not a prompt"),
        ("", "an empty prompt"),
        ("\n\t ", "an empty prompt"),
        ([], "an empty list"),
        ([USER, "text"], "a chat message must have a role and a content, got 'text'"),
        ([{"role": "user"}], "a chat message must have"),
        ([{"role": "", "content": "x"}], "the role of a chat message"),
        ([{"role": "user", "content": None}], "the content of a chat message"),
        ([{"role": "user", "content": [{"type": "image"}]}], "the content of a chat message"),
        ([{"role": "system", "content": "x"}], "without a user message"),
        ([USER, {"role": "user", "content": " "}], "an empty last user message"),
    ],
)
def test_what_asks_nothing_is_refused_with_the_reason(value, reason):
    with pytest.raises(ValueError, match=reason):
        to_question(value)
