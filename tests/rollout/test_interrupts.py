import signal
import threading
from collections.abc import Iterator

import pytest

from rollout.interrupts import deferring_interrupts


@pytest.fixture
def default_handler() -> Iterator[None]:
    """A background job of a shell is started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_handler")
def test_an_interrupt_comes_behind_the_block_and_only_once():
    done = []

    def interrupted() -> None:
        with deferring_interrupts():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append("the rest of the block")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_raised_within_comes_through_and_whose_handler_it_was_has_it_back():
    came = []

    def fail() -> None:
        with deferring_interrupts():
            signal.raise_signal(signal.SIGINT)
            assert came == []
            raise KeyError

    before = signal.signal(signal.SIGINT, lambda *_: came.append(1))
    try:
        with pytest.raises(KeyError):
            fail()
        assert came == [1]
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_may_use_it():
    entered = []

    def enter() -> None:
        with deferring_interrupts():
            entered.append(threading.current_thread())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(10)
    assert entered == [thread]
