from rollout.speculation.drafters.drafter import NO_DRAFT
from rollout.speculation.drafters.history import History
from rollout.speculation.drafters.ngram import NgramDrafter
from rollout.speculation.drafters.suffix import SuffixDrafter
from tests.rollout.speculation.requests import make_state


def propose(drafter, *states, max_tokens=4):
    return drafter.propose(states, max_tokens=max_tokens)


# ---- n-grams


def test_the_longest_ngram_wins_and_then_the_latest():
    state = make_state("a", [1, 2, 3, 50, 9, 3, 60, 8, 3, 70, 2, 3])
    (draft,) = propose(NgramDrafter(), state)
    assert (draft.token_ids, draft.match_length) == ((50, 9, 3, 60), 2)
    (draft,) = propose(NgramDrafter(max_ngram=1), state)
    assert (draft.token_ids, draft.match_length) == ((70, 2, 3), 1), "it ends with the log"


def test_an_ngram_that_was_never_seen_gives_no_draft():
    assert propose(NgramDrafter(), make_state("a", [1, 2, 3])) == [NO_DRAFT]
    assert propose(NgramDrafter(), make_state("a", [1])) == [NO_DRAFT]


def test_ngrams_keep_up_with_the_log_and_are_of_one_request_alone():
    drafter = NgramDrafter()
    state, other = make_state("a", [1, 2, 7, 1]), make_state("b", [1])
    assert propose(drafter, state, other)[0].token_ids == (2, 7, 1)
    state.token_ids += [2, 8, 1, 2]
    a, b = propose(drafter, state, other)
    assert (a.token_ids, a.match_length) == ((8, 1, 2), 2), "the later of two occurrences"
    assert b == NO_DRAFT
    drafter.finish(state, policy_version=0)
    assert not drafter._indices.keys() - {"b"}


# ---- suffixes


def suffix_drafter(history_tokens=1000):
    return SuffixDrafter(history_tokens=history_tokens)


def test_a_sibling_in_flight_is_a_source():
    ahead, behind = make_state("a", [1, 2], [5, 6, 7, 8]), make_state("b", [1, 2], [5, 6])
    _, draft = propose(suffix_drafter(), ahead, behind)
    assert (draft.token_ids, draft.match_length) == ((7, 8), 4)
    assert draft.confidences == (1 / 2, 1 / 2), "seen once"


def test_another_prompt_is_none():
    other, state = make_state("a", [9], [5, 6, 7, 8]), make_state("b", [1, 2], [5, 6])
    assert propose(suffix_drafter(), other, state)[1] == NO_DRAFT


def test_the_majority_of_past_rollouts_decides_and_says_how_sure_it_is():
    drafter = suffix_drafter()
    for i, output in enumerate(([5, 6, 7], [5, 6, 8], [5, 6, 7])):
        drafter.finish(make_state(f"old {i}", [1, 2], output), policy_version=i)
    (draft,) = propose(drafter, make_state("new", [1, 2], [5]))
    assert draft.token_ids == (6, 7)
    assert draft.confidences == (3 / 4, 2 / 4)
    assert draft.match_length == 3


def test_a_request_finds_what_it_said_itself():
    state = make_state("a", [1, 2], [5, 6, 7, 5, 6])
    (draft,) = propose(suffix_drafter(), state)
    assert (draft.token_ids[0], draft.match_length) == (7, 2)


def test_the_prompt_is_a_source_too():
    (draft,) = propose(suffix_drafter(), make_state("a", [1, 2, 3, 4], [2, 3]))
    assert draft.token_ids[0] == 4


def test_trees_die_with_their_last_request_and_come_back_from_the_history():
    drafter = suffix_drafter()
    state = make_state("a", [1, 2], [5, 6, 7])
    propose(drafter, state)
    assert drafter._trees
    drafter.finish(state, policy_version=0)
    assert not drafter._trees
    (draft,) = propose(drafter, make_state("b", [1, 2], [5]))
    assert draft.token_ids == (6, 7)


def test_tokens_that_came_after_the_last_draft_are_caught_up():
    drafter = suffix_drafter()
    ahead, behind = make_state("a", [1, 2], [5]), make_state("b", [1, 2], [5, 6])
    propose(drafter, ahead, behind)
    ahead.token_ids += [6, 7, 8]
    drafter.finish(ahead, policy_version=0)
    (draft,) = propose(drafter, behind)
    assert draft.token_ids == (7, 8)


def test_a_saved_history_drafts_as_before():
    drafter, heir = suffix_drafter(), suffix_drafter()
    drafter.finish(make_state("a", [1, 2], [5, 6, 7]), policy_version=3)
    heir.load_state_dict(drafter.state_dict())
    new = make_state("b", [1, 2], [5])
    assert propose(heir, new) == propose(drafter, new)
    assert heir.state_dict() == drafter.state_dict()


# ---- history


def test_the_history_is_bounded_and_drops_the_prompt_that_was_met_longest_ago():
    history = History(max_tokens=6)
    history.add((1,), [10, 11], 0)
    history.add((2,), [20, 21], 0)
    history.add((1,), [12, 13], 1)
    history.add((3,), [30, 31], 1)
    assert not history.of((2,))
    assert [list(r.token_ids) for r in history.of((1,))] == [[10, 11], [12, 13]]
    assert history.num_tokens == 6
    history.add((3,), [32], 2)
    assert [list(r.token_ids) for r in history.of((1,))] == [[12, 13]], "its oldest first"
    history.add((4,), range(7), 2)
    assert history.num_tokens == 0, "what is longer than the bound is not kept either"


def test_of_a_prompt_the_newest_rollouts_are_kept():
    history = History(max_tokens=1000)
    for version in range(40):
        history.add((1,), [version] * 3, version)
    assert [r.policy_version for r in history.of((1,))] == list(range(8, 40))
    assert history.num_tokens == 96
