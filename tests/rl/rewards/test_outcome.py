import pytest

from rl.rewards.outcome import OutcomeKind, ScoreOutcome


@pytest.mark.parametrize("score", [None, float("nan"), float("inf")])
def test_a_score_is_finite(score):
    with pytest.raises(ValueError, match="must be finite, got"):
        ScoreOutcome(kind=OutcomeKind.SCORE, score=score)


@pytest.mark.parametrize("kind", [OutcomeKind.ERROR, OutcomeKind.TIMEOUT])
def test_a_failure_has_a_message_and_no_score(kind):
    with pytest.raises(ValueError, match=r"must have no score, got 0\.0"):
        ScoreOutcome(kind=kind, score=0.0, message="x")
    with pytest.raises(ValueError, match="must say why"):
        ScoreOutcome(kind=kind)
