"""Stop strings against the text of tokens; the oracle decodes everything and looks at each prefix."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.text.stops import ends_with_stop, text_of
from tests.rollout.text.byte_tokenizers import byte_tokenizer

TOKENIZER = byte_tokenizer()
IM_START, IM_END = 257, 258


@pytest.mark.parametrize(
    ("ids", "stop", "text"),
    [
        ([*b"12", IM_END], ("<|im_end|>",), "12"),
        ([*b"12<|im_end|>"], ("<|im_end|>",), "12"),  # spelled out is the same text
        ([*b"12 ", IM_END, *b"\n"], ("<|im_end|>\n",), "12 "),
        ([*b"a", IM_START, *b"b", IM_END], ("b<|im_end|>",), "a"),
        (
            [*b"x", IM_START, *b"y"],
            ("xy",),
            "",
        ),  # without special tokens, as in the completion's text
        ([*b"1\n"], ("\n", "<|im_end|>"), "1"),
    ],
)
def test_a_stop_string_is_found_with_a_special_token_in_it_or_around_one(ids, stop, text):
    assert ends_with_stop(ids, stop, TOKENIZER)
    assert not ends_with_stop(ids[:-1], stop, TOKENIZER)
    assert text_of(ids, stop, TOKENIZER) == text


TOKENS = st.sampled_from([*b"ab\n ", IM_START, IM_END])
STOPS = st.lists(
    st.sampled_from(["a", "ab", "b\n", "<|im_end|>", "<|im_end|>\n", "a<|im_end|>", " <|im_start|>", "<|im_start|>"]),
    min_size=1, max_size=3, unique=True,
)  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True)
@given(ids=st.lists(TOKENS, max_size=12), stop=STOPS)
def test_generation_ends_at_the_first_token_that_completes_a_stop_string(ids, stop):
    shown = {257: "<|im_start|>", 258: "<|im_end|>"}

    def is_complete(length):
        full = "".join(shown.get(i) or chr(i) for i in ids[:length])
        plain = "".join(chr(i) for i in ids[:length] if i not in shown)
        return any(s in (full if "<|" in s else plain) for s in stop)

    expected = next((n for n in range(1, len(ids) + 1) if is_complete(n)), None)
    got = next(
        (n for n in range(1, len(ids) + 1) if ends_with_stop(ids[:n], stop, TOKENIZER)), None
    )
    assert got == expected
    text = text_of(ids[:got], stop, TOKENIZER)
    assert not any(s in text for s in stop)
    assert "<|" not in text
