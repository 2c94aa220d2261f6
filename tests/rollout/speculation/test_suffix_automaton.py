import random
from collections import Counter

import pytest

from rollout.speculation.drafters.suffix_automaton import ROOT, SuffixAutomaton


def extend(automaton, state, token_ids):
    for token_id in token_ids:
        state = automaton.append(state, token_id)
    return state


def walk(automaton, token_ids):
    """The state of a substring; KeyError if it never occurred."""
    state = ROOT
    for token_id in token_ids:
        state = automaton.follow(state, token_id)
    return state


def followers(branches, trunk):
    """Of every substring of trunk + branch: how often each token followed. Positions in the trunk count once."""
    counts = {}
    for index, branch in enumerate(branches):
        text = [*trunk, *branch]
        # each token is appended once: the trunk's with the first branch
        for end in range(0 if index == 0 else len(trunk), len(text)):
            for start in range(end + 1):
                counts.setdefault(tuple(text[start:end]), Counter())[text[end]] += 1
    return counts


@pytest.mark.parametrize("seed", range(30))
def test_it_knows_every_substring_and_how_often_each_token_followed(seed):
    rng = random.Random(seed)
    alphabet = rng.choice([1, 2, 3, 8])
    trunk = [rng.randrange(alphabet) for _ in range(rng.randrange(12))]
    branches = [
        [rng.randrange(alphabet) for _ in range(rng.randrange(14))]
        for _ in range(rng.randrange(1, 5))
    ]
    automaton = SuffixAutomaton()
    fork = extend(automaton, ROOT, trunk)
    for branch in branches:
        extend(automaton, fork, branch)
    num_tokens = len(trunk) + sum(map(len, branches))
    assert len(automaton) <= 2 * num_tokens + 1
    for substring, expected in followers(branches, trunk).items():
        state = walk(automaton, substring)
        counts = automaton._counts[state]
        assert counts == expected, substring
        token_id, share = automaton.most_frequent(state)
        assert share == pytest.approx(max(expected.values()) / (expected.total() + 1))
        assert expected[token_id] == max(expected.values())


@pytest.mark.parametrize("seed", range(10))
def test_the_longest_repeated_suffix_is_found(seed):
    rng = random.Random(seed)
    text = [rng.randrange(2) for _ in range(40)]
    automaton = SuffixAutomaton()
    state = ROOT
    for count, token_id in enumerate(text, start=1):
        state = automaton.append(state, token_id)
        seen = text[:count]
        longest = max(
            n
            for n in range(count)
            if any(seen[i : i + n] == seen[count - n :] for i in range(count - n))
        )
        assert automaton.match_length(automaton.longest_repeated(state)) == longest


def test_branches_interleave():
    automaton = SuffixAutomaton()
    fork = extend(automaton, ROOT, [1, 2])
    a, b = fork, fork
    for token_id in (3, 4, 5):
        a = automaton.append(a, token_id)
        b = automaton.append(b, token_id)
    assert automaton.most_frequent(walk(automaton, [2, 3])) == (4, 2 / 3)
    assert automaton.most_frequent(walk(automaton, [1, 2])) == (3, 2 / 3)
    assert a == b


def drawn(*draws):
    """What followed 1: (uniform, token) of each, or a token alone where there was no uniform."""
    automaton = SuffixAutomaton()
    start = automaton.append(ROOT, 1)
    for draw in draws:
        uniform, token_id = draw if isinstance(draw, tuple) else (None, draw)
        automaton.append(start, token_id, uniform=uniform)
    return automaton, start


def test_a_uniform_gives_what_its_neighbours_gave():
    automaton, start = drawn((0.1, 7), (0.2, 7), (0.3, 7), (0.8, 9), (0.9, 9))
    assert automaton.likeliest(start, 0.25)[0] == 7
    assert automaton.likeliest(start, 0.95)[0] == 9, "though 7 was drawn more often"
    assert automaton.likeliest(start, 0.4)[0] == 7
    assert automaton.likeliest(start, 0.7)[0] == 9
    sure, unsure = (automaton.likeliest(start, u)[1] for u in (0.15, 0.55))
    assert sure == pytest.approx(5 / 6), "of one mind, five draws"
    assert unsure == pytest.approx(0.5 * 5 / 6), "halfway between two of each"


def test_draws_are_of_their_context_and_its_suffixes_whatever_was_split_since():
    automaton = SuffixAutomaton()
    for first, uniform, then in ((1, 0.2, 5), (2, 0.8, 6), (3, 0.9, 6)):
        state = automaton.append(automaton.append(ROOT, first), 4)
        automaton.append(state, then, uniform=uniform)
    assert automaton._draws[walk(automaton, [1, 4])] == [(0.2, 5)]
    assert automaton._draws[walk(automaton, [4])] == [(0.2, 5), (0.8, 6), (0.9, 6)]
    assert automaton.likeliest(walk(automaton, [4]), 0.1)[0] == 5


def test_where_nothing_was_drawn_and_of_a_greedy_request_the_most_frequent_counts():
    automaton, start = drawn(7, 7, 9)
    assert automaton.likeliest(start, 0.99) == (7, 2 / 4)
    automaton, start = drawn(7, 7, (0.5, 9))
    assert automaton.likeliest(start, 0.99) == (9, 1 / 2), "a prompt's tokens have no uniform"
    assert automaton.likeliest(start, None) == (7, 2 / 4)
