import math

import pytest

from rl.trainer.metrics.skipped_steps import SkippedSteps
from rollout.core import NotFiniteError


def observe_all(limit, norms):
    skipped = SkippedSteps(limit)
    for norm in norms:
        skipped.observe(norm)
    return skipped


@pytest.mark.parametrize(
    "norms", [[math.nan] * 3, [1.0, math.nan, math.inf, math.nan], [0.0, *[math.inf] * 3]]
)
def test_as_many_in_a_row_as_the_limit_end_the_run(norms):
    observe_all(3, norms[:-1])
    with pytest.raises(NotFiniteError, match=r"3 steps in a row .*trainer\.max_skipped_steps=3"):
        observe_all(3, norms)


def test_a_step_that_changes_the_weights_begins_the_count_anew():
    skipped = observe_all(3, [math.nan, math.nan, 1.0, math.nan, math.nan, 0.0])
    assert not skipped.is_skipping
    skipped.check_end()


def test_a_run_of_skipped_steps_alone_does_not_end_well():
    skipped = observe_all(3, [math.nan, math.nan])
    assert skipped.is_all_skipped
    with pytest.raises(NotFiniteError, match="all 2 steps were skipped"):
        skipped.check_end()
    after_a_good_one = observe_all(3, [1.0, math.nan, math.nan])
    assert not after_a_good_one.is_all_skipped
    after_a_good_one.check_end()
    observe_all(3, []).check_end()
