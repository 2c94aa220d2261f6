"""Double-quoted text of a command line is read as YAML reads it, through Hydra's own grammar."""

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from rl.composition.escapes import quoted, read_escapes


def value_of(override: str):
    return OverridesParser.create().parse_override(read_escapes(override)).value()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (r'"\n"', "\n"),
        (r'"a\tb\r"', "a\tb\r"),
        (r'"say \"hi\""', 'say "hi"'),
        (r'"\\boxed{}"', r"\boxed{}"),
        (r'"ends with \\"', "ends with \\"),
        (r'"\\\""', '\\"'),
        (r'"\u00bd \x41"', "\u00bd A"),
        (r"'\n'", r"\n"),
        (r"'\boxed{}'", r"\boxed{}"),
        (r"\\boxed", r"\boxed"),
        ("plain", "plain"),
        ('""', ""),
    ],
)
def test_escapes_count_in_double_quotes_only(value, text):
    assert value_of(f"task.user_prompt={value}") == text


def test_escapes_count_in_lists_and_mappings():
    assert value_of(r'sampling.stop=["\n", "\n\n", "."]') == ["\n", "\n\n", "."]
    assert value_of(r'task.params={a: "\t", b: [1, "x\\"]}') == {"a": "\t", "b": [1, "x\\"]}


@pytest.mark.parametrize("value", [r'"\boxed"', r'"\d+"', r'"\0"', r'["a", "\e"]'])
def test_an_escape_that_would_change_a_text_in_silence_is_refused(value):
    with pytest.raises(ValueError, match=r"^task\.user_prompt: \\. is not a valid escape"):
        read_escapes(f"task.user_prompt={value}")


def test_an_interpolation_that_is_escaped_stays_escaped():
    assert value_of(r'task.user_prompt="\${question}"') == r"\${question}"


@given(st.text(alphabet=st.sampled_from("ab\"\\'\n\t,[]{}=: \u00bd"), max_size=12))
def test_any_text_survives_quoting(text):
    assert OverridesParser.create().parse_override(f"key={quoted(text)}").value() == text


@given(st.text(alphabet=st.sampled_from("ab\"\\'\n\t,[]{}=: "), max_size=12))
def test_what_yaml_writes_in_double_quotes_is_read_as_yaml_reads_it(text):
    written = (
        '"'
        + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
        + '"'
    )
    assert yaml.safe_load(written) == text
    assert value_of(f"key={written}") == text
