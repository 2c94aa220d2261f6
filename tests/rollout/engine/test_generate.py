"""What `Engine.generate` takes for a prompt, and the engine that it leaves."""

import signal

import numpy as np
import pytest
import torch

from rollout.config import DrafterKind, SpeculationConfig
from rollout.core import SamplingParams
from rollout.engine import sampler
from tests.rollout.engine.engines import make_engine

pytestmark = pytest.mark.usefixtures("one_thread")

GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
TEXT = "12 + 35 ="
IDS = [*TEXT.encode()]
CHAT = [{"role": "user", "content": TEXT}]


@pytest.fixture(scope="module")
def engine(llama, one_thread):
    return make_engine(llama)


def tokens(outputs):
    return [[completion.token_ids for completion in group] for group in outputs]


@pytest.mark.parametrize(
    "prompt",
    [
        TEXT,
        [TEXT],
        IDS,
        tuple(IDS),
        [IDS],
        torch.tensor(IDS),
        torch.tensor([IDS]),
        [torch.tensor(IDS)],
        np.array(IDS),
        np.array([IDS], dtype=np.int32),
        list(np.array(IDS)),
        list(torch.tensor(IDS)),
        np.str_(TEXT),
        np.array([TEXT]),
        (text for text in [TEXT]),
    ],
    ids=lambda prompt: type(prompt).__name__,
)
def test_one_prompt_in_any_form_is_a_list_of_one(engine, prompt):
    assert tokens(engine.generate(prompt, GREEDY)) == tokens(engine.generate([TEXT], GREEDY))


@pytest.mark.parametrize("chat", [CHAT, tuple(CHAT), CHAT[0], [CHAT]])
def test_one_chat_is_one_prompt(engine, chat):
    outputs = engine.generate(chat, GREEDY)
    assert len(outputs) == 1
    assert tokens(outputs) == tokens(engine.generate([CHAT], GREEDY))
    assert tokens(outputs) != tokens(engine.generate([TEXT], GREEDY))


def test_prompts_of_several_forms_keep_their_order(engine):
    outputs = engine.generate([CHAT, TEXT, torch.tensor([9, 8]), (7,)], GREEDY)
    alone = [engine.generate(p, GREEDY)[0] for p in (CHAT, TEXT, [9, 8], [7])]
    assert tokens(outputs) == tokens(alone)
    assert engine.generate([], GREEDY) == []


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (12, "prompts must be a prompt or a list of them"),
        (None, "prompts must be a prompt or a list of them"),
        (b"12", "prompts must be a prompt or a list of them"),
        ([1, 2.5], "a prompt must be a text .* got 1$"),
        (torch.tensor([1.0, 2.0]), "a prompt must be a text .* got 1.0"),
        ([True, False], "a prompt must be a text .* got True"),
        ([TEXT, None], "got None"),
        ([[[1, 2]]], "a prompt must be a text"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1, 1]]}, "pass its input_ids"),
        ([{"text": "x"}], "got a mapping with the keys"),
        ("", "prompt must not be empty"),
        ([[]], "prompt must not be empty"),
        ([{"role": "user"}], "must have a role and a content"),
    ],
)
def test_what_is_no_prompt_is_refused_with_the_forms_that_are(engine, prompts, message):
    with pytest.raises(ValueError, match=message):
        engine.generate(prompts, GREEDY)
    assert not engine.has_unfinished


@pytest.mark.parametrize(
    ("params", "message"),
    [([GREEDY], "got 1 for 2 prompts"), ([GREEDY, 1], "params must be SamplingParams"), (5, "not iterable")],
)  # fmt: skip
def test_params_that_do_not_fit_are_refused(engine, params, message):
    with pytest.raises((ValueError, TypeError), match=message):
        engine.generate([TEXT, TEXT], params)


class Breaks:
    """Does as `sample_tokens`, and at the second call something else."""

    def __init__(self, action):
        self.calls, self.action, self.original = 0, action, sampler.sample_tokens

    def __call__(self, *args):
        self.calls += 1
        if self.calls == 2:
            self.action()
        return self.original(*args)


def fail():
    raise RuntimeError("broken")


def interrupt() -> None:
    """Do as Ctrl-C does, also in a process that was started in the background, where SIGINT is ignored."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("drafter", [DrafterKind.off, DrafterKind.suffix])
@pytest.mark.parametrize(
    ("action", "error"),
    [(fail, RuntimeError), (interrupt, KeyboardInterrupt)],
    ids=["exception", "interrupt"],
)
def test_the_next_call_works_after_one_that_was_broken_off(
    llama, monkeypatch, drafter, action, error
):
    engine = make_engine(llama, speculation=SpeculationConfig(drafter=drafter))
    params = SamplingParams(n=3, max_tokens=8, ignore_eos=True)
    expected = tokens(engine.generate([TEXT, CHAT], params))
    monkeypatch.setattr("rollout.engine.verification.sample_tokens", Breaks(action))
    with pytest.raises(error):
        engine.generate([TEXT, CHAT], params)
    monkeypatch.undo()
    assert not engine.has_unfinished
    engine.check_integrity()
    assert engine.num_free_blocks == engine.num_blocks
    assert tokens(engine.generate([TEXT, CHAT], params)) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_is_sampled_from_logits_that_are_not_finite(llama, value, temperature):
    engine = make_engine(llama)
    engine.decoder.norm.data[5] = value
    params = SamplingParams(temperature=temperature, max_tokens=4)
    with pytest.raises(RuntimeError, match=r"logits of 1 of 1 draws are not finite, .* '0/0' at"):
        engine.generate([TEXT], params)
    assert not engine.has_unfinished


def test_one_row_that_is_not_finite_names_its_request(llama):
    engine = make_engine(llama)
    engine.decoder.embed_tokens.data[7] = float("nan")  # an input row, and a column of the logits
    with pytest.raises(RuntimeError, match="not finite"):
        engine.generate([[1, 2], [7, 7]], GREEDY)
