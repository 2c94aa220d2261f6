import pytest

from rollout.core import SamplingParams


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 0}, "n must be a whole number > 0, got 0"),
        ({"temperature": -0.1}, "temperature must be 0 "),
        ({"temperature": float("nan")}, r"temperature must be 0 \(greedy\) .* got nan"),
        ({"top_k": -1}, "top_k must be a whole number >= 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\]"),
        ({"min_p": 1.0}, r"min_p must be in \[0, 1\)"),
        ({"min_p": -0.5}, r"min_p must be in \[0, 1\)"),
        ({"max_tokens": 0}, "max_tokens must be a whole number > 0"),
        ({"temperature": 1e-40}, "temperature must be 0 "),
        ({"temperature": float("inf")}, "temperature must be 0 "),
        ({"temperature": "1"}, "temperature must be 0 "),
        ({"temperature": True}, "temperature must be 0 "),
        ({"n": 2.0}, "n must be a whole number > 0, got 2.0"),
        ({"n": True}, "n must be a whole number"),
        ({"max_tokens": "16"}, "max_tokens must be a whole number > 0, got '16'"),
        ({"seed": 2**63}, r"seed must be < 2\*\*63"),
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"seed": None}, "seed must be a whole number"),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"stop": None}, "stop must be a tuple"),
        ({"stop": (3,)}, "stop must be a tuple"),
        ({"stop_token_ids": 5}, "stop_token_ids must be a tuple of token ids"),
        ({"stop_token_ids": (-1,)}, "stop_token_ids must be a tuple of token ids"),
        ({"stop": ("a", "")}, "stop must be a tuple of non-empty strings"),
        ({"stop": "abc"}, "stop must be a tuple of non-empty strings, got 'abc'"),
    ],
)
def test_a_value_out_of_range_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**values)


@pytest.mark.parametrize("values", [{"top_k": 1}, {"top_p": 0.99}, {"min_p": 0.01}])
def test_tokens_are_dropped_unless_decoding_is_greedy(values):
    assert SamplingParams(**values).truncates
    assert not SamplingParams(temperature=0, **values).truncates
    assert not SamplingParams().truncates
