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
