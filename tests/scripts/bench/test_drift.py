"""Acceptance against drift: what a replay accepts, and how far two policies are apart."""

import math
from array import array

import pytest
import torch

from rollout.core import SampleKey
from rollout.models.checkpoint import load_decoder
from rollout.models.sources.tiny import make_tiny_model
from rollout.speculation.drafters.history import PastRollout
from scripts.bench.drift.measure import Scorer, Version, kl_per_token, measure_drift, replay

PROMPT = (1, 2, 3)


def said(*token_ids):
    """Greedily, so that the most frequent token is drafted."""
    return PastRollout(0, None, array("i", token_ids))


def test_a_history_that_tells_the_future_is_right_every_time_and_another_never():
    answer = said(10, 11, 12, 13, 14, 15, 16, 17)
    right = replay({PROMPT: [answer]}, {PROMPT: [answer]}, max_draft_tokens=3)
    assert right == (6, 6, 2), "3 drafted and one drawn, twice"
    wrong = replay({PROMPT: [said(20, 21, 22)]}, {PROMPT: [answer]}, max_draft_tokens=3)
    assert wrong == (1, 0, 8)


def test_a_draft_is_kept_up_to_its_first_wrong_token_and_siblings_do_not_help():
    history = {PROMPT: [said(10, 11, 12, 13, 14)]}
    answers = {PROMPT: [said(10, 11, 99, 98, 97), said(10, 11, 99, 98, 97)]}
    tested, accepted, steps = replay(history, answers, max_draft_tokens=4)
    assert accepted == 4, "10 and 11 of each, and of 99 98 97 nothing"
    assert steps == 6
    assert tested == 6, "99 was drafted as 12, and what stood behind 12 does not count"


def test_what_was_drawn_is_replayed_with_the_uniforms_it_was_drawn_with():
    low, high = (
        SampleKey(0, 0, 3),
        SampleKey(0, 0, 0),
    )  # their uniforms behind the prompt: 0.14 and 0.63
    drawn = [PastRollout(0, key, array("i", [t] * 4)) for key, t in ((low, 10), (high, 11))]
    for answer in drawn:
        _, accepted, steps = replay({PROMPT: drawn}, {PROMPT: [answer]}, max_draft_tokens=4)
        assert (accepted, steps) == (3, 1)


class Fixed:
    """Says the same of every token."""

    def __init__(self, *probabilities):
        self._row = torch.tensor(probabilities).log()

    def __call__(self, prompt, completion):
        return self._row.expand(len(completion), -1)


def version(number, score):
    answers = {PROMPT: [said(0, 1)]}
    return Version(number, score, answers, answers)


def test_kl_is_over_the_whole_vocabulary_and_not_symmetric():
    a, b = version(0, Fixed(0.5, 0.5)), version(1, Fixed(0.9, 0.1))
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert kl_per_token(b, a) == pytest.approx(expected, rel=1e-6)
    assert kl_per_token(a, b) == pytest.approx(0.5 * math.log(0.25 / 0.09), rel=1e-6)


def test_each_version_decodes_with_the_history_of_itself_and_of_every_earlier_one():
    versions = [version(4, Fixed(0.5, 0.5)), version(8, Fixed(0.9, 0.1))]
    done = []
    results = list(measure_drift(versions, max_draft_tokens=4, progress=lambda: done.append(None)))
    pairs = [(r["history_version"], r["decoding_version"]) for r in results]
    assert pairs == [(4, 4), (4, 8), (8, 8)]
    assert [r["kl_per_token"] > 0 for r in results] == [False, True, False]
    assert len(done) == 3
    assert results[0]["num_tokens"] == 2


def test_scores_are_those_of_a_forward_over_the_text_so_far(tmp_path):
    make_tiny_model(tmp_path)
    decoder = load_decoder(tmp_path, dtype=torch.float32)
    completion = [7, 200, 31]
    score = Scorer(decoder, max_tokens=6, temperature=0.5)
    logprobs_NV = score(PROMPT, completion)
    assert logprobs_NV.shape == (3, decoder.spec.vocab_size)
    torch.testing.assert_close(logprobs_NV.exp().sum(-1), torch.ones(3))
    # what stands before each token, scored as if it were a prompt
    for n in range(3):
        (alone_V,) = score((*PROMPT, *completion[:n]), completion[n : n + 1])
        assert torch.equal(logprobs_NV[n], alone_V)
    warm = Scorer(decoder, max_tokens=6, temperature=1.0)(PROMPT, completion)
    assert not torch.allclose(warm, logprobs_NV)
