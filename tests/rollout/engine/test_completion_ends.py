"""Where a completion ends: limits, stop ids, stop strings, the context; and what its text leaves out."""

import pytest

from rollout.core import FinishReason
from rollout.engine import verification
from tests.rollout.engine.engines import make_engine, make_request, prompt, run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def endless(llama, one_thread) -> list[int]:
    """A completion of 20 tokens that nothing ends, for the tests below to end."""
    (completion,) = run(
        make_engine(llama), [make_request("a", prompt(6), max_tokens=20, seed=5)]
    ).values()
    assert len(set(completion.token_ids)) > 12
    return completion.token_ids


def ended(directory, *, eos_token_ids=(), **params):
    engine = make_engine(directory, eos_token_ids=eos_token_ids)
    request = make_request("a", prompt(6), **{"max_tokens": 20, "seed": 5} | params)
    (completion,) = run(engine, [request]).values()
    assert len(completion.logprobs) == len(completion.policy_versions) == len(completion.token_ids)
    return completion.token_ids, completion.finish_reason


def test_max_tokens_ends_a_completion(llama, endless):
    for count in (1, 7, 20):
        assert ended(llama, max_tokens=count) == (endless[:count], FinishReason.LENGTH)


def test_a_stop_id_ends_a_completion_and_stays_in_it(llama, endless):
    first = endless.index(endless[9])
    absent = next(token for token in range(256) if token not in endless)
    stop = (absent, endless[9])
    assert ended(llama, stop_token_ids=stop) == (endless[: first + 1], FinishReason.STOP)
    assert ended(llama, stop_token_ids=(absent,)) == (endless, FinishReason.LENGTH)


def test_the_end_of_sequence_ends_a_completion_unless_it_is_ignored(llama, endless):
    first = endless.index(endless[9])
    absent = next(token for token in range(256) if token not in endless)
    eos = (absent, endless[9])
    stopped = (endless[: first + 1], FinishReason.STOP)
    assert ended(llama, eos_token_ids=eos, ignore_eos=False) == stopped
    assert ended(llama, eos_token_ids=eos) == (endless, FinishReason.LENGTH)
    assert ended(llama, eos_token_ids=eos, stop_token_ids=(endless[9],)) == stopped


def test_a_stop_at_the_last_allowed_token_is_a_stop(llama, endless):
    first = endless.index(endless[9])
    got = ended(llama, stop_token_ids=(endless[9],), max_tokens=first + 1)
    assert got == (endless[: first + 1], FinishReason.STOP)


@pytest.mark.parametrize("limit", ["engine", "model"])
def test_the_end_of_the_context_ends_a_completion(llama, endless, limit):
    engine = make_engine(llama, max_context_tokens=16 if limit == "engine" else 1000)
    token_ids = prompt(6) if limit == "engine" else prompt(502)
    request = make_request("a", token_ids, max_tokens=20, seed=5)
    (completion,) = run(engine, [request]).values()
    assert (len(completion.token_ids), completion.finish_reason) == (10, FinishReason.LENGTH)
    if limit == "engine":
        assert completion.token_ids == endless[:10]


def test_a_prompt_one_short_of_the_context_gets_one_token(llama):
    (completion,) = run(
        make_engine(llama, max_context_tokens=16), [make_request("a", prompt(15))]
    ).values()
    assert (len(completion.token_ids), completion.finish_reason) == (1, FinishReason.LENGTH)


@pytest.fixture
def says(monkeypatch):
    """Makes every completion spell a text, byte by byte."""

    def script(text: str) -> None:
        def sample(_logits_RV, _rows, states, _positions):
            return [text.encode()[state.num_output] for state in states], [-1.0] * len(states)

        monkeypatch.setattr(verification, "sample_tokens", sample)

    return script


@pytest.mark.parametrize(
    ("says_what", "stop", "num_bytes", "text"),
    [
        ("the end.\nQ: no", ("\nQ:",), 11, "the end."),
        ("abcabd", ("abd",), 6, "abc"),  # the first try fails inside
        ("aab", ("ab",), 3, "a"),
        ("one two", ("two", "ne"), 3, "o"),  # which comes first in the text ends it
        ("xabcy", ("bc", "abc"), 4, "x"),  # both end at once: cut at the earlier start
        ("xabcy", ("abcd", "b"), 3, "xa"),
        ("né, café", ("é",), 3, "n"),  # two tokens, neither a character of its own
        ("ok 🙂 ok", ("🙂",), 7, "ok "),
        ("stop", ("stop",), 4, ""),
        ("x" * 90 + "THE END" + "x", ("THE END",), 97, "x" * 90),
    ],
)
def test_a_stop_string_ends_a_completion_and_its_text_before_the_string(
    llama, says, says_what, stop, num_bytes, text
):
    says(says_what)
    request = make_request("a", prompt(3), stop=stop, max_tokens=len(says_what.encode()))
    (completion,) = run(make_engine(llama), [request]).values()
    assert bytes(completion.token_ids) == says_what.encode()[:num_bytes]
    assert (completion.text, completion.finish_reason) == (text, FinishReason.STOP)


@pytest.mark.parametrize("stop", [("<|im_end|>",), ("zz", "<|im_end|>"), ("i<|im_end|>",)])
def test_a_special_token_in_a_stop_string_ends_a_completion(llama, monkeypatch, stop):
    script = [*b"hi", 258, *b"no"]
    monkeypatch.setattr(
        verification,
        "sample_tokens",
        lambda _l, _r, states, _p: ([script[states[0].num_output]], [0]),
    )
    request = make_request("a", prompt(3), ignore_eos=True, stop=stop)
    (completion,) = run(make_engine(llama), [request]).values()
    assert (completion.token_ids, completion.finish_reason) == (script[:3], FinishReason.STOP)
    assert completion.text == ("h" if "i" in stop[0][:1] else "hi")


def test_a_stop_string_that_the_prompt_begins_is_not_one(llama, says):
    says("op> on")
    request = make_request("a", b"<st", stop=("<stop>",), max_tokens=6)
    (completion,) = run(make_engine(llama), [request]).values()
    assert (completion.text, completion.finish_reason) == ("op> on", FinishReason.LENGTH)


def test_the_text_leaves_special_tokens_out(llama, monkeypatch):
    script = [*b"hi", 257, *b"!", 258]
    monkeypatch.setattr(
        verification,
        "sample_tokens",
        lambda _l, _r, states, _p: ([script[states[0].num_output]], [0]),
    )
    request = make_request("a", prompt(3), ignore_eos=False)
    (completion,) = run(make_engine(llama), [request]).values()
    assert (completion.token_ids, completion.text) == (script, "hi!")
    assert completion.finish_reason is FinishReason.STOP
