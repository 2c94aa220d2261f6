import pytest

from rollout.fleet.cluster.update_round import Phase, UpdateRound

STAGE, VERIFY, COMMIT = Phase.STAGE, Phase.VERIFY, Phase.COMMIT


def make_round(*worker_ids: str, is_last_attempt: bool = False) -> UpdateRound:
    return UpdateRound(1, worker_ids or ("a", "b"), is_last_attempt=is_last_attempt)


def answer_all(current: UpdateRound, phase: Phase, **errors: str) -> bool:
    assert current.phase is phase
    for worker_id in current.asked:
        assert not current.advance(), "somebody is pending"
        current.answer(worker_id, phase, errors.get(worker_id, ""))
    return current.advance()


def test_all_stage_then_all_verify_then_all_commit():
    current = make_round()
    for phase in (STAGE, VERIFY, COMMIT):
        assert not current.is_done
        answer_all(current, phase)
    assert current.is_done
    assert (current.committed, current.failures) == (["a", "b"], {})


@pytest.mark.parametrize("phase", [STAGE, VERIFY])
def test_one_failure_rolls_everyone_back(phase):
    current = make_round()
    if phase is VERIFY:
        answer_all(current, STAGE)
    assert answer_all(current, phase, b="bad bytes")
    assert (current.phase, current.asked) == (Phase.ROLLBACK, ["a", "b"])
    answer_all(current, Phase.ROLLBACK)
    assert (current.is_done, current.committed) == (True, [])
    assert current.failures == {"b": f"{phase.value}: bad bytes"}


def test_in_the_last_attempt_those_who_can_go_on():
    current = make_round(is_last_attempt=True)
    answer_all(current, STAGE)
    answer_all(current, VERIFY, b="bad bytes")
    assert current.asked == ["a"]
    answer_all(current, COMMIT)
    assert (current.committed, list(current.failures)) == (["a"], ["b"])


def test_a_lost_worker_holds_nobody_up():
    current = make_round()
    current.answer("a", STAGE)
    current.lose("b", "it was killed")
    assert current.advance()
    assert (current.phase, current.asked) == (VERIFY, ["a"])
    assert current.failures == {"b": "stage: it was killed"}


def test_when_all_are_lost_nobody_is_asked_any_more():
    current = make_round()
    current.lose("a", "x")
    current.lose("b", "y")
    assert not current.advance()
    assert (current.is_done, current.committed) == (True, [])


def test_a_commit_that_fails_somewhere_is_in_force_elsewhere_and_one_that_fails_everywhere_nowhere():
    current = make_round()
    answer_all(current, STAGE)
    answer_all(current, VERIFY)
    answer_all(current, COMMIT, b="no")
    assert (current.is_done, current.committed, list(current.failures)) == (True, ["a"], ["b"])
    current = make_round()
    answer_all(current, STAGE)
    answer_all(current, VERIFY)
    answer_all(current, COMMIT, a="no", b="no")
    assert current.phase is Phase.ROLLBACK
    answer_all(current, Phase.ROLLBACK)
    assert (current.is_done, current.committed) == (True, [])


def test_answers_to_other_phases_and_of_strangers_change_nothing():
    current = make_round()
    current.answer("a", VERIFY, "too early")
    current.answer("c", STAGE, "who?")
    current.lose("c", "gone")
    assert (current.pending, current.failures) == (["a", "b"], {})
