"""Entry point of every script: composes the config, reports a user's mistake in one sentence, and sets the exit
code."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from kernels.host_memory import keep_freed_memory
from rl.composition.checks import checked_runs
from rl.composition.command_line import CommandLine, check_override_keys, read_command_line
from rl.composition.convert import to_config
from rl.composition.explain import documented_yaml, help_page, list_of_keys
from rl.composition.schemas import ROOTS, register_schemas
from rl.composition.sentences import in_one_sentence
from rl.composition.sweeps import place_run
from rl.composition.tree import CONF, QUIET_HYDRA, composed, search_in_front
from rl.plain_output import allow_any_text
from rl.runs.saved_config import base_on_run
from rl.runs.stop_signal import Stopped, StopSignal
from rl.trainer.ranks.environment import half_environment, is_first_process
from rl.version import version_text
from rollout.core import NotFiniteError

__all__ = ["INTERRUPTED", "RunError", "UserError", "launch"]

INTERRUPTED = 130
"""Exit code after a stop signal, as in shells after Ctrl-C."""
_PATIENCE_SECONDS = 20.0
"""Time that other processes than the first wait before they exit, in seconds. torchrun stops all processes as soon
as one has exited, and the first may not have printed its error yet."""

Task = Callable[[Any], int | None]
logger = logging.getLogger("paceline")


class UserError(Exception):
    """Error for a mistake of the user that is found before any work is done."""


class RunError(Exception):
    """Error for a failure of the environment that ends a run. Its sentence says what failed, and how to continue."""


def launch(task: Task, *, config_name: str, schema: type | None = None) -> NoReturn:
    """Compose `conf/<config_name>.yaml` with the overrides of the command line, and run `task(config)` once or as a
    sweep.

    Args:
        task: function that takes the composed config and returns an exit code; None counts as 0.
        config_name: name of the primary config.
        schema: dataclass of the primary config; None: the one in `rl.composition.schemas.ROOTS`.

    The exit code is 2 after a user's mistake, 1 after an error that ended the run, 130 after a stop signal, and
    otherwise the one that `task` returns. Errors are printed as one sentence. A sweep continues after a run that
    exits with 1 or 2, and exits with the highest code of its runs.
    """
    allow_any_text()
    try:
        with StopSignal(is_quiet=True):
            _launch(task, config_name, schema or ROOTS[config_name])
    except Stopped as stopped:
        _fail(f"stopped by {stopped} before there was anything to keep", code=INTERRUPTED)


def _launch(task: Task, config_name: str, root: type) -> NoReturn:
    keep_freed_memory()
    register_schemas({config_name: root})
    _configure_logging()
    try:
        line = read_command_line(sys.argv[1:])
        search_in_front(line.config_dirs)
        explanation = _explanation(line, config_name, root)
        if explanation:
            sys.stdout.write(explanation)
            sys.exit(0)
        if "--shell-completion" in line.hydra_flags:  # the arguments of this flag are Hydra's
            sys.argv[1:] = [*line.hydra_flags, *line.overrides]
            _run(_Runs(task, root, overrides=(), count=0), config_name)
        config_name, overrides = base_on_run(config_name, line)
        overrides = check_override_keys(overrides, root)
        if line.shows_config:
            with in_one_sentence(root):
                cfg = composed(config_name, overrides)
                sys.stdout.write(
                    documented_yaml(cfg, root, resolve="--resolve" in line.hydra_flags)
                )
            sys.exit(0)
        runs, placed = checked_runs(config_name, overrides, root, line)
        if line.is_run and half_environment():
            raise ValueError(half_environment())
    except ValueError as error:
        half = half_environment()
        _fail(str(error) if half in str(error) else f"{error}; and {half}")
    sys.argv[1:] = [*line.hydra_flags, *QUIET_HYDRA, *placed, *overrides]
    _run(_Runs(task, root, overrides=overrides, count=len(runs)), config_name)


class _Runs:
    """Runner of one config, or of the configs of a sweep one after another.

    Args:
        task: function that takes a config.
        root: schema of the config.
        overrides: overrides of the command line.
        count: number of runs in the sweep; 0 if it is not known.
    """

    def __init__(self, task: Task, root: type, *, overrides: Sequence[str], count: int) -> None:
        self._task, self._root = task, root
        self._overrides, self._count = overrides, count
        self.exit_code = 0

    def run(self, cfg: DictConfig) -> None:
        """Run one composed config. A sweep continues after a failed run, and ends with a run that was stopped."""
        hydra_config = HydraConfig.get()
        if hydra_config.mode is not RunMode.MULTIRUN:
            self._take(*self._outcome(cfg))
            return
        overrides = [str(override) for override in hydra_config.overrides.task]
        name = place_run(cfg, overrides, self._overrides, Path(hydra_config.sweep.dir))
        number = f"run {int(hydra_config.job.num) + 1}" + f" of {self._count}" * bool(self._count)
        logger.info("%s: %s", number, name)
        code, message = self._outcome(cfg)
        self._take(code, message and f"{number}, {name}: {message}")

    def _take(self, code: int, message: str) -> None:
        self.exit_code = max(self.exit_code, code)
        if message:
            _print_error(message)
        if code == INTERRUPTED:
            _exit(INTERRUPTED)

    def _outcome(self, cfg: DictConfig) -> tuple[int, str]:
        """Return the exit code of a run, and the error that ended it."""
        try:
            return self._task(to_config(cfg, self._root)) or 0, ""
        except UserError as error:
            return 2, str(error)
        except (RunError, NotFiniteError) as error:
            return 1, str(error)


def _run(runs: _Runs, config_name: str) -> NoReturn:
    # shows complete tracebacks, which Hydra's own handler shortens
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    def main(cfg: DictConfig) -> None:
        runs.run(cfg)

    main()
    _exit(runs.exit_code)


def _explanation(line: CommandLine, config_name: str, root: type) -> str:
    """Return the text that a command line asks for, such as help; empty if it asks for a run."""
    if line.wants_version:
        return f"{version_text()}\n"
    if line.wants_help:
        return help_page(config_name, root)
    return "" if line.keys_pattern is None else list_of_keys(root, line.keys_pattern)


def _configure_logging() -> None:
    # sources of other packages are compiled on their first import, and tell users of their own faults then
    warnings.filterwarnings("ignore", category=SyntaxWarning)
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logger.setLevel(logging.INFO if is_first_process() else logging.ERROR)


def _print_error(message: str) -> None:
    if is_first_process():
        text = Text.assemble(
            ("error: ", "bold red"), message
        )  # not as markup, because paths may contain brackets
        Console(stderr=True, soft_wrap=True, highlight=False).print(text)


def _fail(message: str, *, code: int = 2) -> NoReturn:
    _print_error(message)
    _exit(code)


def _exit(code: int) -> NoReturn:
    if code and not is_first_process():
        time.sleep(_PATIENCE_SECONDS)
    sys.exit(code)
