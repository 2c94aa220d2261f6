"""Hostile or odd scorers. The completion names the action; an action without a result of its own scores the row's number."""

import asyncio
import atexit
import ctypes
import decimal
import gc
import json
import multiprocessing
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

_sleep = time.sleep  # a deed replaces it
DEEDS: dict[str, Callable[[], Any]] = {}


def deed(function: Callable[[], Any]) -> Callable[[], Any]:
    """Makes a function a deed. None: the scorer returns the row's number."""
    DEEDS[function.__name__] = function
    return function


def score(completion: str, row: dict[str, Any]) -> Any:
    """Run the action that the completion names; return its result, or else the row's number."""
    if completion == "wait":  # until deeds that come late have come
        _sleep(0.15)
    if completion in DEEDS:
        result = DEEDS[completion]()
        if result is not None:
            return result
    return row["number"]


def _sockets() -> list[int]:
    return [fd for fd in range(3, 64) if _is_open(fd)]


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _in_child(function: Callable[[], Any]) -> None:
    if os.fork() == 0:
        function()


# children


@deed
def child_returns() -> Any:
    return 666.0 if os.fork() == 0 else None


@deed
def child_raises() -> Any:
    if os.fork() == 0:
        raise ValueError("child")


@deed
def child_exits_by_system_exit() -> Any:
    _in_child(lambda: sys.exit(3))


@deed
def child_exits_at_once() -> Any:
    _in_child(lambda: os._exit(0))


@deed
def parent_waits_for_child_that_returns() -> Any:
    pid = os.fork()
    if pid == 0:
        return 666.0
    os.waitpid(pid, 0)
    return None


@deed
def ten_children_return() -> Any:
    for _ in range(10):
        if os.fork() == 0:
            return 666.0
    return None


@deed
def child_of_child_returns() -> Any:
    if os.fork() == 0:
        os.fork()
        return 666.0
    return None


@deed
def child_returns_late() -> Any:
    if os.fork() == 0:
        time.sleep(0.1)
        return 666.0
    return None


@deed
def child_leads_a_session_and_returns() -> Any:
    if os.fork() == 0:
        os.setsid()
        return 666.0
    return None


@deed
def child_made_in_c_returns() -> Any:
    return 666.0 if ctypes.CDLL(None).fork() == 0 else None


@deed
def child_writes_to_every_descriptor() -> Any:
    def write() -> None:
        for fd in _sockets():
            try:
                os.write(fd, b'\n["start", 1, "score", 666.0, "", false, false]\n')
            except OSError:
                continue
        os._exit(0)

    _in_child(write)


@deed
def pool_of_processes() -> Any:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]


@deed
def process_that_is_terminated() -> Any:
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    process.terminate()
    process.join()


@deed
def subprocess_that_is_terminated() -> Any:
    with subprocess.Popen(["sleep", "60"]) as process:
        process.terminate()


@deed
def subprocess_is_left() -> Any:
    subprocess.Popen(["sleep", "60"])


@deed
def child_sends_kill_to_parent() -> Any:
    pid = os.getpid()
    _in_child(lambda: (os.kill(pid, signal.SIGKILL), os._exit(0)))
    time.sleep(5)


# descriptors


@deed
def closes_all_descriptors() -> Any:
    os.closerange(3, 256)


@deed
def closes_standard_streams() -> Any:
    os.closerange(0, 3)


@deed
def closes_all_and_opens_others() -> Any:
    os.closerange(0, 256)
    for _ in range(20):
        os.open("/dev/null", os.O_RDWR)


@deed
def closes_stdout_object() -> Any:
    sys.stdout.close()


@deed
def replaces_stdout() -> Any:
    sys.stdout = None  # type: ignore[assignment]


@deed
def prints_to_stdout() -> Any:
    print("printed")  # noqa: T201


@deed
def writes_garbage_to_every_descriptor() -> Any:
    for fd in _sockets():
        try:
            os.write(fd, b"\x00\xff" * 1000 + b"\n{}\n[]\n")
        except OSError:
            continue


@deed
def writes_half_a_line_to_every_descriptor() -> Any:
    for fd in _sockets():
        try:
            os.write(fd, b'["')
        except OSError:
            continue


@deed
def writes_forged_replies() -> Any:
    for fd in _sockets():
        try:
            os.write(
                fd, json.dumps(["", os.getpid(), "score", 666.0, "", False, False]).encode() + b"\n"
            )
        except OSError:
            continue


@deed
def swaps_our_socket() -> Any:
    ours, _ = socket.socketpair()
    for fd in _sockets():
        if fd != ours.fileno():
            os.dup2(ours.fileno(), fd)


@deed
def shuts_down_every_socket() -> Any:
    for fd in _sockets():
        try:
            socket.socket(fileno=os.dup(fd)).shutdown(socket.SHUT_RDWR)
        except OSError:
            continue


@deed
def leaks_descriptors() -> Any:
    for _ in range(50):
        os.open("/dev/null", os.O_RDONLY)


# ends


@deed
def exits_at_once() -> Any:
    os._exit(0)


@deed
def exits_by_system_exit() -> Any:
    sys.exit(0)


@deed
def raises_keyboard_interrupt() -> Any:
    raise KeyboardInterrupt


@deed
def raises_generator_exit() -> Any:
    raise GeneratorExit


@deed
def raises_what_cannot_be_shown() -> Any:
    class Unshowable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    raise Unshowable


@deed
def raises_a_long_message() -> Any:
    raise ValueError("\n" * 10_000_000)


@deed
def aborts() -> Any:
    os.abort()


@deed
def crashes() -> Any:
    ctypes.string_at(0)


@deed
def becomes_another_program() -> Any:
    os.execvp("true", ["true"])


@deed
def becomes_a_program_that_stays() -> Any:
    os.execvp("sleep", ["sleep", "60"])


@deed
def exits_at_exit() -> Any:
    atexit.register(os._exit, 0)


@deed
def recurses_for_ever() -> Any:
    return recurses_for_ever()


@deed
def eats_memory() -> Any:
    return len(bytearray(10**10))


# signals


def _sender(number: int) -> Callable[[], Any]:
    return lambda: os.kill(os.getpid(), number)


for _name in (
    "SIGTERM",
    "SIGINT",
    "SIGHUP",
    "SIGUSR1",
    "SIGUSR2",
    "SIGKILL",
    "SIGQUIT",
    "SIGALRM",
    "SIGPIPE",
    "SIGSTOP",
):
    DEEDS[f"sends_itself_{_name}"] = _sender(getattr(signal, _name))


@deed
def sends_sigterm_to_its_group() -> Any:
    os.killpg(0, signal.SIGTERM)


@deed
def leaves_an_alarm_that_kills() -> Any:
    signal.setitimer(signal.ITIMER_REAL, 0.05)


@deed
def leaves_an_alarm_that_raises() -> Any:
    def ring(*_: object) -> None:
        raise TimeoutError("alarm of an earlier job")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)


@deed
def replaces_signal_handlers() -> Any:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda *_: os._exit(7))


@deed
def blocks_all_signals() -> Any:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


@deed
def ignores_children() -> Any:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


# threads


def _later(function: Callable[[], Any], seconds: float = 0.05) -> None:
    def run() -> None:
        time.sleep(seconds)
        function()

    threading.Thread(target=run, daemon=True).start()


@deed
def thread_exits_the_process_later() -> Any:
    _later(lambda: os._exit(0))


@deed
def thread_kills_the_process_later() -> Any:
    _later(lambda: os.kill(os.getpid(), signal.SIGKILL))


@deed
def thread_stops_the_process_later() -> Any:
    _later(lambda: os.kill(os.getpid(), signal.SIGSTOP))


@deed
def thread_raises_in_the_main_thread_later() -> Any:
    main = threading.main_thread().ident
    _later(
        lambda: ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(main), ctypes.py_object(KeyError)
        )
    )


@deed
def thread_interrupts_later() -> Any:
    import _thread

    _later(_thread.interrupt_main)


@deed
def thread_raises_later() -> Any:
    _later(lambda: 1 / 0)


@deed
def thread_writes_garbage_later() -> Any:
    _later(writes_garbage_to_every_descriptor)


@deed
def thread_closes_all_later() -> Any:
    _later(lambda: os.closerange(0, 256))


@deed
def thread_forks_later() -> Any:
    _later(lambda: os.fork())


@deed
def thread_that_never_ends() -> Any:
    threading.Thread(target=threading.Event().wait, args=(60,)).start()


@deed
def thread_that_spins() -> Any:
    def spin() -> None:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            pass

    threading.Thread(target=spin, daemon=True).start()


@deed
def fifty_threads() -> Any:
    for _ in range(50):
        threading.Thread(target=time.sleep, args=(0.2,)).start()


# state of the process


@deed
def changes_directory() -> Any:
    os.chdir("/")


@deed
def goes_to_a_directory_that_vanishes() -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)


@deed
def forbids_open_files() -> Any:
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


@deed
def limits_its_cpu_time() -> Any:
    resource.setrlimit(resource.RLIMIT_CPU, (1, 1))


@deed
def forbids_recursion() -> Any:
    sys.setrecursionlimit(30)


@deed
def leaves_a_trace_function() -> Any:
    sys.settrace(_raise_on_trace)
    threading.settrace(_raise_on_trace)


def _raise_on_trace(*_: object) -> Any:
    raise RuntimeError("traced")


@deed
def clears_the_environment() -> Any:
    os.environ.clear()


@deed
def empties_the_search_path() -> Any:
    sys.path.clear()


@deed
def turns_warnings_into_errors() -> Any:
    warnings.simplefilter("error")


@deed
def counts_with_one_digit() -> Any:
    decimal.getcontext().prec = 1


@deed
def turns_collection_off() -> Any:
    gc.disable()


@deed
def replaces_getpid() -> Any:
    os.getpid = lambda: 1


@deed
def replaces_exit() -> Any:
    os._exit = lambda code: None  # type: ignore[assignment]


@deed
def replaces_pickle_and_json() -> Any:
    pickle.loads = json.dumps = lambda *a, **k: 1 / 0  # type: ignore[assignment]


@deed
def replaces_time() -> Any:
    time.monotonic = time.sleep = lambda *_: 0.0  # type: ignore[assignment]


@deed
def replaces_float() -> Any:
    import builtins

    builtins.float = lambda value: 666.0  # type: ignore[assignment]
    return None


@deed
def forgets_its_modules() -> Any:
    for name in [name for name in sys.modules if name.startswith("rl.")]:
        del sys.modules[name]


# values


class Odd:
    """A number whose conversion does a deed."""

    ndim = 0

    def item(self) -> Any:
        if os.fork() == 0:
            return 666.0
        raise RuntimeError("no item")


class OddFloat(float):
    """A float subclass that converts to another value."""

    def __float__(self) -> float:
        return 5.0

    def __le__(self, other: object) -> bool:
        raise RuntimeError("not comparable")


DEEDS["returns_an_odd_array"] = Odd
DEEDS["returns_an_odd_float"] = lambda: OddFloat(1.0)
DEEDS["returns_nan"] = lambda: float("nan")
DEEDS["returns_a_huge_number"] = lambda: 1e308
DEEDS["returns_a_huge_integer"] = lambda: 10**5000
DEEDS["returns_text"] = lambda: "1.0"
DEEDS["returns_a_lambda"] = lambda: lambda: 1
DEEDS["returns_a_generator"] = lambda: (x for x in [1.0])
DEEDS["returns_a_deep_list"] = lambda: [[[[1.0]]]]
DEEDS["returns_true"] = lambda: True


# event loops


@deed
def runs_an_event_loop() -> Any:
    asyncio.run(asyncio.sleep(0))


@deed
def returns_a_coroutine() -> Any:
    return _coroutine()


async def _coroutine() -> float:
    asyncio.get_running_loop().call_later(0.05, lambda: 1 / 0)
    task = asyncio.ensure_future(asyncio.sleep(60))
    await asyncio.sleep(0)
    assert not task.done()
    return 5.0


@deed
def returns_a_coroutine_that_forks() -> Any:
    async def fork() -> float:
        return 666.0 if os.fork() == 0 else 5.0

    return fork()


@deed
def closes_the_event_loop() -> Any:
    async def close() -> float:
        asyncio.get_running_loop().call_soon(asyncio.get_running_loop().stop)
        return 5.0

    return close()
