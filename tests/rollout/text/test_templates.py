"""`model.chat_template` and its arguments."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.config import ModelConfig
from rollout.text.chat import render_chat
from rollout.text.prompts import encode_prompt
from rollout.text.templates import CHATML, set_chat_template
from rollout.text.tokenizer import load_tokenizer
from tests.rollout.text.byte_tokenizers import QWEN3_LIKE, byte_tokenizer
from tests.tiny_models import save_tiny

MESSAGES = [{"role": "system", "content": "brief"}, {"role": "user", "content": "2 + 2 ="}]


def rendered(own, choice="", **arguments):
    tokenizer = byte_tokenizer(own)
    set_chat_template(tokenizer, choice, arguments)
    return render_chat(MESSAGES, tokenizer)


def test_an_empty_choice_keeps_the_tokenizers_own():
    assert rendered("own {{ messages | map(attribute='content') | join }}") == "own brief2 + 2 ="


def test_plain_is_the_text_of_the_messages():
    assert rendered(None, "plain") == "brief\n\n2 + 2 ="
    assert rendered(CHATML, "plain") == "brief\n\n2 + 2 ="


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_plain_prompt_has_the_tokens_of_its_text(adds_bos):
    tokenizer = byte_tokenizer(None, adds_bos=adds_bos)
    set_chat_template(tokenizer, "plain", {})
    got = encode_prompt(MESSAGES[1:], tokenizer)
    assert got == encode_prompt("2 + 2 =", tokenizer)
    assert got.count(256) == int(adds_bos)


def test_a_template_may_be_text_a_file_or_a_name(tmp_path):
    text = "{% for m in messages %}{{ m.role }}>{{ m.content }};{% endfor %}"
    (tmp_path / "mine.jinja").write_text(text)
    expected = "system>brief;user>2 + 2 =;"
    assert rendered(CHATML, text) == expected
    assert rendered(CHATML, str(tmp_path / "mine.jinja")) == expected
    assert rendered({"default": CHATML, "mine": text}, "mine") == expected
    assert rendered(None, "chatml") == rendered(CHATML)


def test_a_choice_that_is_no_template_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match=r"one of chatml, mine, plain, got 'mien'"):
        rendered({"mine": CHATML}, "mien")


def test_arguments_reach_the_template_and_whoever_renders_may_still_give_others():
    assert rendered(QWEN3_LIKE).endswith("<|im_start|>assistant\n")
    thinks_not = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert rendered(QWEN3_LIKE, enable_thinking=False).endswith(thinks_not)
    tokenizer = byte_tokenizer(QWEN3_LIKE)
    set_chat_template(tokenizer, "", {"enable_thinking": False})
    other = tokenizer.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    assert other == rendered(QWEN3_LIKE)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=100, deadline=None, derandomize=True)
@given(value=JSON)
def test_a_template_reads_the_very_value_of_an_argument(value):
    tokenizer = byte_tokenizer("{{ messages[0].content }}{{ x | tojson }}")
    direct = tokenizer.apply_chat_template(MESSAGES, tokenize=False, x=value)
    set_chat_template(tokenizer, "", {"x": value})
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == direct


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    start=st.text(st.sampled_from("\n \t-x"), max_size=6),
    block=st.sampled_from(["{% if x %}A\n{% endif %}\n", "{%- if x -%}A{%- endif -%}", "{# c #}\n", "{{ x }}\n", ""]),
)  # fmt: skip
def test_an_argument_changes_nothing_but_its_variable(start, block):
    template = start + block + "{{ messages[0].content }}{{ x }}\n"
    tokenizer = byte_tokenizer(template)
    direct = tokenizer.apply_chat_template(MESSAGES, tokenize=False, x=True)
    set_chat_template(tokenizer, "", {"x": True})
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == direct


@pytest.mark.parametrize(("content", "rule"), [(b"", "is empty"), (b"\xff{{", "UTF-8")])
def test_a_file_that_is_no_template_is_named(tmp_path, content, rule):
    path = tmp_path / "x.jinja"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rule) as error:
        rendered(CHATML, str(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("own", "arguments", "message"),
    [
        (QWEN3_LIKE, {"enable_thinkin": False}, "got 'enable_thinkin'"),
        (QWEN3_LIKE, {"messages": []}, "got 'messages'"),
        (None, {"x": 1}, "needs a chat template"),
    ],
)
def test_an_argument_that_no_template_reads_is_refused(own, arguments, message):
    with pytest.raises(ValueError, match=message):
        rendered(own, **arguments)


def test_the_config_gives_a_tokenizer_its_template(tmp_path):
    directory = save_tiny(tmp_path, "llama", num_hidden_layers=1)
    config = ModelConfig(path=str(directory), chat_template="plain")
    assert render_chat(MESSAGES, load_tokenizer(directory, config)) == "brief\n\n2 + 2 ="
    assert "im_start" in render_chat(MESSAGES, load_tokenizer(directory))
