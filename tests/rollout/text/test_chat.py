"""Chat messages as text: replies that were begun, templates that refuse."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.text.chat import render_chat
from rollout.text.prompts import encode_prompt, encode_prompts
from rollout.text.templates import CHATML, PLAIN
from tests.rollout.text.byte_tokenizers import NO_SYSTEM, QWEN3_LIKE, byte_tokenizer

SYSTEM, USER = {"role": "system", "content": "brief"}, {"role": "user", "content": "2 + 2 ="}
MISTRAL_LIKE = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content | trim }}<|im_end|>{% endif %}{% endfor %}"
)


def begun(text):
    return [USER, {"role": "assistant", "content": text}]


@pytest.mark.parametrize("template", [CHATML, PLAIN, QWEN3_LIKE, MISTRAL_LIKE])
@pytest.mark.parametrize(
    "prefix", ["Answer: ", " ", "\n\n", "x", "The answer is", "2 + 2 =", "é 🙂 "]
)
def test_a_reply_that_was_begun_is_the_end_of_the_prompt_under_any_template(template, prefix):
    tokenizer = byte_tokenizer(template)
    opening = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    assert render_chat(begun(prefix), tokenizer) == opening + prefix
    ids = encode_prompt(begun(prefix), tokenizer)
    assert tokenizer.decode(ids) == opening + prefix
    assert encode_prompts([begun(prefix), [USER]], tokenizer) == [
        ids,
        encode_prompt([USER], tokenizer),
    ]


@st.composite
def templates(draw):
    """Headers, ends and filters of every mixture; the oracle is the string that Python builds of the same parts."""
    parts = {
        "head": draw(st.sampled_from(["<|im_start|>{role}\n", "[{role}] ", "{role}: ", ""])),
        "tail": draw(st.sampled_from(["<|im_end|>\n", "<|im_end|>", "\n", " </s>"])),
        "think": draw(st.sampled_from(["", "<think>\n\n</think>\n\n"])),
        "trims": draw(st.booleans()),
    }
    head = "{{ '" + parts["head"].replace("\n", "\\n").replace("{role}", "' + m.role + '") + "' }}"
    opening = parts["head"].replace("{role}", "assistant")
    source = (
        "{% for m in messages %}" + head
        + "{% if m.role == 'assistant' %}{{ '" + parts["think"].replace("\n", "\\n") + "' }}{% endif %}"
        + "{{ m.content" + (" | trim" if parts["trims"] else "") + " }}"
        + "{{ '" + parts["tail"].replace("\n", "\\n") + "' }}{% endfor %}"
        + "{% if add_generation_prompt %}{{ '" + opening.replace("\n", "\\n") + "' }}{% endif %}"
    )  # fmt: skip

    def expected(messages, prefix):
        text = "".join(
            parts["head"].replace("{role}", m["role"])
            + (m["content"].strip() if parts["trims"] else m["content"])
            + parts["tail"]
            for m in messages
        )
        return text + opening + prefix

    return source, expected


TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(template=templates(), question=TEXTS, prefix=TEXTS, system=TEXTS | st.none())
def test_any_template_and_text_give_the_prompt_that_their_parts_say(
    template, question, prefix, system
):
    source, expected = template
    messages = [{"role": "user", "content": question}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    tokenizer = byte_tokenizer(source)
    got = render_chat([*messages, {"role": "assistant", "content": prefix}], tokenizer)
    assert got == expected(messages, prefix)
    assert render_chat(messages, tokenizer) == expected(messages, "")


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        (NO_SYSTEM, [SYSTEM, USER], ["takes no system message", "System role not supported", "task.system_prompt", "model.chat_template"]),
        ("{{ raise_exception('no') }}", [USER], ["cannot render", "roles user", "no", "model.chat_template"]),
        ("{{ messages[0].content + 1 }}", [USER], ["cannot render", "model.chat_template"]),
        ("{% for m in messages %}", [USER], ["cannot render", "model.chat_template"]),
        ("{{ messages[5].content.x }}", [SYSTEM, USER], ["cannot render", "roles system, user"]),
        ("{{ 1 / 0 }}", [USER], ["cannot render", "division by zero"]),
        (None, [USER], ["model.chat_template=plain", "model.chat_template=chatml"]),
        ("{{ messages[-1].content }}", [SYSTEM, USER], ["leaves the system message out: 'brief'", "task.system_prompt"]),
    ],
)  # fmt: skip
def test_a_template_that_cannot_render_the_messages_says_so_in_one_sentence(
    template, messages, words
):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - words below
        render_chat(messages, byte_tokenizer(template))
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize("content", [None, 3, [{"type": "text", "text": "x"}]])
def test_a_reply_that_was_begun_must_be_text(content):
    with pytest.raises(ValueError, match="the beginning of a reply must be text"):
        render_chat(begun(content), byte_tokenizer(CHATML))
