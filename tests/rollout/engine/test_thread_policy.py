import time

import pytest
import torch

from rollout.engine.thread_policy import ThreadPolicy, read_core_times


class Machine:
    """Cores whose times a test sets."""

    def __init__(self) -> None:
        self.now = self.busy = self.own = 0.0

    def pass_time(self, seconds: float, *, own: float, others: float) -> None:
        self.now += seconds
        self.own += own * seconds
        self.busy += (own + others) * seconds

    def policy(self, num_cores: int) -> ThreadPolicy:
        return ThreadPolicy(
            num_cores=num_cores, read=lambda: (self.busy, self.own), clock=lambda: self.now
        )


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def threads_in(policy: ThreadPolicy) -> int:
    with policy:
        return torch.get_num_threads()


@pytest.mark.parametrize(
    ("others", "expected"),
    [(0.0, 4), (0.3, 4), (0.35, 3), (1.0, 3), (1.3, 3), (1.4, 2), (2.2, 2), (4.0, 1), (9.0, 1)],
)
def test_a_thread_is_given_up_for_each_core_that_others_keep_busy(four_threads, others, expected):
    machine = Machine()
    policy = machine.policy(num_cores=4)
    machine.pass_time(1.0, own=4.0, others=others)
    assert threads_in(policy) == expected
    assert torch.get_num_threads() == 4, "outside the engine nothing changes"


def test_threads_come_back_when_the_neighbour_leaves_and_not_before(four_threads):
    machine = Machine()
    policy = machine.policy(num_cores=4)
    assert threads_in(policy) == 4
    machine.pass_time(0.4, own=4.0, others=2.0)
    assert threads_in(policy) == 4, "too early to tell"
    machine.pass_time(0.4, own=2.0, others=2.0)
    assert threads_in(policy) == 2
    machine.pass_time(0.4, own=2.0, others=0.0)
    assert threads_in(policy) == 2
    machine.pass_time(0.4, own=2.0, others=0.0)
    assert threads_in(policy) == 4


def test_threads_that_were_not_wanted_are_never_added(four_threads):
    machine = Machine()
    policy = machine.policy(num_cores=64)
    machine.pass_time(1.0, own=4.0, others=10.0)
    assert threads_in(policy) == 4


def test_threads_are_restored_after_an_error(four_threads):
    machine = Machine()
    policy = machine.policy(num_cores=4)
    machine.pass_time(1.0, own=0.0, others=3.0)
    seen = []

    def fail() -> None:
        with policy:
            seen.append(torch.get_num_threads())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [1]
    assert torch.get_num_threads() == 4


def test_without_proc_stat_nothing_is_given_up(four_threads):
    policy = ThreadPolicy(num_cores=4, read=lambda: None)
    assert threads_in(policy) == 4


def test_work_of_this_process_counts_as_its_own_and_among_all():
    before = read_core_times()
    assert before is not None
    start = time.process_time()
    while time.process_time() - start < 0.2:
        pass
    after = read_core_times()
    assert after is not None
    busy, own = after[0] - before[0], after[1] - before[1]
    assert own >= 0.2
    assert busy >= own - 0.05, "but for the ticks at both ends"
