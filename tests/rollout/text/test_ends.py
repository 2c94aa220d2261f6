"""What ends a completion: every source of a model directory, and what is said where they disagree."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollout.text.ends import resolve_ends
from rollout.text.templates import CHATML, PLAIN
from tests.rollout.text.byte_tokenizers import NO_SYSTEM, QWEN3_LIKE, byte_tokenizer

BOS, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"  # 256, 257, 258


@pytest.fixture
def ends_of(tmp_path):
    def resolve(*, config=None, generation=None, template=CHATML, eos=IM_END):
        for name, content in (("config.json", config), ("generation_config.json", generation)):
            (tmp_path / name).unlink(missing_ok=True)
            if content is not None:
                (tmp_path / name).write_text(json.dumps(content))
        return resolve_ends(tmp_path, byte_tokenizer(template, eos_token=eos))

    return resolve


def test_the_templates_end_of_turn_ends_a_completion_though_the_config_names_another(ends_of):
    ends = ends_of(config={"eos_token_id": 256}, eos=BOS)
    assert ends.token_ids == (256, 258)
    assert ends.end_of_turn == 258
    assert ends.description == "<|endoftext|> (256), <|im_end|> (258)"
    (warning,) = ends.warnings
    assert (
        "template's end of a turn is <|im_end|> (258), and config.json names <|endoftext|> (256)"
        in warning
    )


def test_the_tokenizers_end_ends_a_completion_of_a_base_model(ends_of):
    ends = ends_of(config={"eos_token_id": 256}, template=None, eos=IM_END)
    assert ends.token_ids == (256, 258)
    assert ends.end_of_turn is None
    assert "the tokenizer's end of sequence is <|im_end|> (258)" in ends.warnings[0]


def test_sources_that_agree_say_nothing(ends_of):
    for generation in (None, {}, {"eos_token_id": [258, 256]}):
        assert ends_of(config={"eos_token_id": 258}, generation=generation).warnings == ()


def test_an_end_that_the_generation_config_overrules_is_said(ends_of):
    ends = ends_of(config={"eos_token_id": 256}, generation={"eos_token_id": 258})
    assert ends.token_ids == (258,)
    assert "config.json ends a sequence at <|endoftext|> (256)" in ends.warnings[0]


@pytest.mark.parametrize("empty", [{"eos_token_id": None}, {"eos_token_id": []}, {}])
def test_a_generation_config_that_names_no_end_leaves_it_to_the_config(ends_of, empty):
    assert ends_of(config={"eos_token_id": 257}, generation=empty).token_ids == (257, 258)


def test_a_turn_that_ends_with_text_is_said_to_need_a_stop_string(ends_of):
    template = "{% for m in messages %}{{ m.content }}</turn>\n{% endfor %}"
    ends = ends_of(config={"eos_token_id": 258}, template=template)
    assert ends.end_of_turn is None
    assert "'</turn>', which is not a token" in ends.warnings[0]


@pytest.mark.parametrize("template", [NO_SYSTEM, PLAIN, "{{ raise_exception('x') }}", "{% for"])
def test_templates_without_a_token_after_a_reply_have_no_end_of_turn(ends_of, template):
    assert ends_of(config={"eos_token_id": 258}, template=template).end_of_turn is None


def test_nothing_that_ends_a_completion_is_said(tmp_path):
    tokenizer = byte_tokenizer(None)
    tokenizer.eos_token = None
    ends = resolve_ends(tmp_path, tokenizer)
    assert ends.token_ids == ()
    assert "no token" in ends.description
    assert "runs to sampling.max_tokens" in ends.warnings[0]


@pytest.mark.parametrize("value", ["258", [258, "x"], -1, True, 1.5])
def test_an_end_that_is_no_token_id_is_refused_with_its_file(ends_of, value):
    with pytest.raises(
        ValueError, match=r"eos_token_id of .*/generation_config\.json must be token ids"
    ):
        ends_of(config={}, generation={"eos_token_id": value})


IDS = st.sampled_from([256, 257, 258, 259, 65])
NAMED = st.none() | IDS | st.lists(IDS, max_size=3)


@settings(
    max_examples=80, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    config=NAMED,
    generation=NAMED,
    has_generation=st.booleans(),
    eos=st.sampled_from([BOS, IM_START, IM_END]),
    turn=st.sampled_from([None, BOS, IM_START, IM_END]),
)
def test_all_sources_end_a_completion_and_what_files_lack_is_said(
    ends_of, config, generation, has_generation, eos, turn
):
    template = (
        None if turn is None else "{% for m in messages %}{{ m.content }}" + turn + "\n{% endfor %}"
    )
    ends = ends_of(
        config={"eos_token_id": config},
        generation={"eos_token_id": generation} if has_generation else None,
        template=template,
        eos=eos,
    )

    def listed(value):
        return set() if value is None else set(value) if isinstance(value, list) else {value}

    of_files = (listed(generation) if has_generation else set()) or listed(config)
    number = {BOS: 256, IM_START: 257, IM_END: 258, None: None}
    others = {number[eos], number[turn]} - {None}
    assert set(ends.token_ids) == of_files | others
    said = " ".join(ends.warnings)
    for token_id in (of_files | others | listed(config)) - (of_files & (others | of_files)):
        assert f"({token_id})" in said
    assert bool(others - of_files) <= bool(ends.warnings)


def test_a_qwen3_like_template_ends_turns_with_its_token(ends_of):
    assert ends_of(config={"eos_token_id": 256}, template=QWEN3_LIKE).end_of_turn == 258
