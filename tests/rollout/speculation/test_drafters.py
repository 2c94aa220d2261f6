import json
import random
from bisect import bisect

from rollout.core import SampleKey
from rollout.speculation.drafters.drafter import NO_DRAFT
from rollout.speculation.drafters.history import History
from rollout.speculation.drafters.ngram import NgramDrafter
from rollout.speculation.drafters.suffix import SuffixDrafter
from rollout.speculation.drafters.uniforms import uniforms
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


def test_of_a_greedy_request_the_majority_of_past_rollouts_decides_and_says_how_sure_it_is():
    drafter = suffix_drafter()
    for i, output in enumerate(([5, 6, 7], [5, 6, 8], [5, 6, 7])):
        drafter.finish(make_state(f"old {i}", [1, 2], output), policy_version=i)
    (draft,) = propose(drafter, make_state("new", [1, 2], [5], temperature=0.0))
    assert draft.token_ids == (6, 7)
    assert draft.confidences == (3 / 4, 2 / 4)
    assert draft.match_length == 3


def uniforms_of(sample_index, count):
    """Of the positions behind a prompt of two tokens."""
    return uniforms([(SampleKey(0, 0, sample_index), 2, count)])[0]


U = [uniforms_of(i, 2)[1] for i in range(6)]  # behind [1, 2, 5]


def test_a_draft_is_what_the_requests_own_uniform_should_draw_whatever_most_of_them_drew():
    drafter = suffix_drafter()
    border = sorted(U)[2]  # an inverse CDF: three samples below give 6, three above 7
    for i in range(6):
        output = [5, 6 if U[i] <= border else 7, 9]
        drafter.finish(make_state(f"old {i}", [1, 2], output, sample_index=i), policy_version=0)
    for _ in range(3):
        greedy = make_state("most", [1, 2], [5, 7, 9], temperature=0.0)
        drafter.finish(greedy, policy_version=0)
    states = [make_state(f"new {i}", [1, 2], [5], sample_index=i) for i in range(6)]
    drafts = propose(drafter, *states)
    assert [d.token_ids[0] for d in drafts] == [6 if u <= border else 7 for u in U]
    (greedy,) = propose(drafter, make_state("greedy", [1, 2], [5], temperature=0.0))
    assert greedy.token_ids[0] == 7
    heir = suffix_drafter()
    heir.load_state_dict(json.loads(json.dumps(drafter.state_dict())))
    assert propose(heir, *states) == drafts, "what was saved has the keys"


def test_past_draws_tell_more_than_frequencies_do():
    """160 samples of a distribution with three tokens at each of 12 positions, behind 24 past ones."""
    rng = random.Random(0)
    borders = [sorted(rng.random() for _ in range(2)) for _ in range(12)]

    def answer(i):
        return [10 + 3 * p + bisect(borders[p], u) for p, u in enumerate(uniforms_of(i, 12))]

    def num_right(temperature):
        drafter = suffix_drafter()
        for i in range(24):
            past = make_state("past", [1, 2], answer(i), sample_index=i)
            drafter.finish(past, policy_version=0)
        right = 0
        for i in range(24, 184):
            state = make_state(f"{i}", [1, 2], temperature=temperature, sample_index=i)
            for token_id in answer(i):
                (draft,) = propose(drafter, state, max_tokens=1)
                right += draft.token_ids == (token_id,)
                state.token_ids.append(token_id)
            drafter._trees.clear()  # its siblings are not to know it
        return right

    assert num_right(1.0) > 1.15 * num_right(0.0)


def test_a_history_without_keys_is_a_majority_to_all():
    drafter = suffix_drafter()
    saved = [[[1, 2], 0, [5, 6]], [[1, 2], 0, [5, 7]], [[1, 2], 0, [5, 7]]]
    drafter.load_state_dict({"rollouts": saved})
    for i in range(6):
        (draft,) = propose(drafter, make_state(f"{i}", [1, 2], [5], sample_index=i), max_tokens=1)
        assert (draft.token_ids, draft.confidences) == ((7,), (2 / 4,))
        drafter._trees.clear()
    assert drafter.state_dict() == {"rollouts": saved}


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


def of(*prompt):
    return make_state("", prompt).request


def test_the_history_is_bounded_and_drops_the_prompt_that_was_met_longest_ago():
    history = History(max_tokens=6)
    history.add(of(1), [10, 11], 0)
    history.add(of(2), [20, 21], 0)
    history.add(of(1), [12, 13], 1)
    history.add(of(3), [30, 31], 1)
    assert not history.of((2,))
    assert [list(r.token_ids) for r in history.of((1,))] == [[10, 11], [12, 13]]
    assert history.num_tokens == 6
    history.add(of(3), [32], 2)
    assert [list(r.token_ids) for r in history.of((1,))] == [[12, 13]], "its oldest first"
    history.add(of(4), range(7), 2)
    assert history.num_tokens == 0, "what is longer than the bound is not kept either"


def test_of_a_prompt_the_newest_rollouts_are_kept():
    history = History(max_tokens=1000)
    for version in range(40):
        history.add(of(1), [version] * 3, version)
    assert [r.policy_version for r in history.of((1,))] == list(range(8, 40))
    assert history.num_tokens == 96
