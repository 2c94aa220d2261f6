"""Signals as requests to stop."""

import os
import signal

import pytest

from rl.runs import stop_signal
from rl.runs.stop_signal import STOP_SIGNALS, Stopped, StopSignal


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_while_a_run_starts_a_signal_ends_it_at_once(number):
    with StopSignal() as stop, pytest.raises(Stopped, match=number.name):
        send(number)
    assert stop.requested
    assert stop.name == number.name


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_once_deferred_a_signal_is_a_request_and_a_batch_system_may_repeat_it(number, monkeypatch):
    monkeypatch.setattr(stop_signal, "_ECHO_SECONDS", 100.0)
    with StopSignal(is_quiet=True) as stop:
        stop.defer()
        assert not stop.requested
        send(number)
        send(number)
        assert stop.requested
        assert stop.name == number.name


def test_a_second_ctrl_c_ends_at_once_and_a_second_sigterm_does_not(monkeypatch):
    monkeypatch.setattr(stop_signal, "_ECHO_SECONDS", -1.0)
    with StopSignal(is_quiet=True) as stop:
        stop.defer()
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGINT"):
            send(signal.SIGINT)


def test_under_nohup_a_hang_up_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            send(signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_as_before_afterwards():
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopSignal():
        pass
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_a_signal_that_comes_a_moment_later_is_waited_for():
    with StopSignal(is_quiet=True) as stop:
        stop.defer()
        assert not stop.comes_within(0.0)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        before = signal.signal(signal.SIGALRM, lambda *_: send(signal.SIGTERM))
        try:
            assert stop.comes_within(10.0)
        finally:
            signal.signal(signal.SIGALRM, before)
