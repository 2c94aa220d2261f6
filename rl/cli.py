"""What stands between a command line and a run: composition, one clear sentence for a mistake, exit codes."""

import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.logging import RichHandler

from kernels.host_memory import keep_freed_memory
from rl.composition import ROOTS, known_keys, options_with, register_schemas, suggest, to_config
from rl.saved_config import base_on_run
from rl.stop_signal import Stopped, StopSignal
from rollout.core import NotFiniteError

__all__ = ["INTERRUPTED", "RunError", "UserError", "launch"]

INTERRUPTED = 130
"""Exit code after a stop signal, as shells have it after Ctrl-C."""

CONF = Path(__file__).resolve().parents[1] / "conf"
_FLAGS_WITH_VALUE = {"--cfg", "-c", "--info", "-i", "--package", "-p", "--experimental-rerun"}
_IS_FIRST = os.environ.get("RANK", "0") == "0"
"""Of the processes that torchrun started; the others find the same mistakes, and say nothing."""
_FREE = ("task.params", "algorithm.params", "model.chat_template_kwargs")
"""Keys whose own keys are those of another library, or of a user's class."""
_PATIENCE_SECONDS = 20.0
"""Of the others: torchrun ends all as soon as one has ended, and the first may not have spoken yet."""
_GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()}


class UserError(Exception):
    """A mistake in what the user asked for, found before any work was done."""


class RunError(Exception):
    """Something beneath the run ended it; the sentence says what, and how to go on."""


def launch(
    task: Callable[[Any], int | None], *, config_name: str, schema: type | None = None
) -> None:
    """Compose `conf/<config_name>.yaml` with the command line's overrides and run `task(config)`.

    Args:
        task: takes the composed config.
        config_name: name of the primary config.
        schema: dataclass of the primary config; None takes it from `rl.composition.ROOTS`.

    Exits with 2 after one sentence on a user's mistake, with 1 after one on what ended the run, with 130 after a stop
    signal, and with what `task` returns otherwise.
    """
    try:
        with StopSignal(is_quiet=True):
            _launch(task, config_name=config_name, schema=schema)
    except Stopped as stopped:
        _fail(f"stopped by {stopped} before there was anything to keep", code=INTERRUPTED)


def _launch(task: Callable[[Any], int | None], *, config_name: str, schema: type | None) -> None:
    keep_freed_memory()
    root = schema or ROOTS[config_name]
    register_schemas({config_name: root})
    _configure_logging()
    arguments = [_add_if_free(argument) for argument in sys.argv[1:]]
    is_sweep = bool({"-m", "--multirun"} & set(arguments))
    try:
        config_name, arguments = base_on_run(config_name, arguments)
        sys.argv[1:] = arguments
        if not is_sweep and not any(a.startswith(("-h", "--h")) for a in arguments):
            _check(arguments, config_name, root)
    except ValueError as error:
        _fail(str(error))
    exit_codes: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    def main(cfg: DictConfig) -> None:
        try:
            exit_codes.append(task(_config_of(cfg, root)) or 0)
        except (UserError, RunError, NotFiniteError) as error:
            if is_sweep:
                raise
            _fail(str(error), code=2 if isinstance(error, UserError) else 1)

    # a traceback is worth reading whole: Hydra's own handler cuts it
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    main()
    sys.exit(max(exit_codes, default=0))


def _add_if_free(argument: str) -> str:
    """Hydra adds a key that no schema has only when it is told to, by `++`."""
    key, equals, _ = argument.partition("=")
    return f"++{argument}" if equals and _is_free(key) else argument


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in _FREE)


def _config_of(cfg: DictConfig, root: type) -> Any:
    hydra_config = HydraConfig.get()
    if hydra_config.mode is RunMode.MULTIRUN and "run_dir" in cfg:
        cfg.run_dir = hydra_config.runtime.output_dir  # each run of a sweep has its own
    return to_config(cfg, root)  # pyrefly: ignore


def _check(arguments: Sequence[str], config_name: str, root: type) -> None:
    """Find what Hydra would say in a page, and say it in a sentence.

    Raises:
        ValueError: an unknown key or group option, a value of the wrong type or out of range.
    """
    before = ["", *arguments]
    overrides = [
        argument
        for flag, argument in zip(before, arguments, strict=False)
        if not argument.startswith("-") and flag not in _FLAGS_WITH_VALUE
    ]
    known = set(known_keys(root))
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise ValueError(f"overrides are key=value, got {override!r}")
        key = override.lstrip("+~").partition("=")[0].partition("@")[0]
        is_known = key in known or key.startswith("hydra") or _is_free(key)
        if not is_known and key.partition("/")[0] not in _GROUPS:
            raise ValueError(f"unknown config key {key}{suggest(key, root)}")
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            cfg = compose(config_name, overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_sentence(error, root)) from error
    if not any(a.startswith(("-c", "--cfg", "-i", "--info")) for a in arguments):
        to_config(cfg, root)  # pyrefly: ignore


def _sentence(error: Exception, root: type) -> str:
    """Of a composition error: OmegaConf, at times behind Hydra, names the key on a line of its own."""
    text = f"{error}\n{error.__cause__ or ''}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    keys = [line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")]
    if keys and keys[0] not in known_keys(root):
        return (
            f"unknown config key {keys[0]}{suggest(keys[0], root)} ({lines[0].partition(':')[0]})"
        )
    if keys and ("is not in struct" in text or "not in '" in text):
        return f"{keys[0]} is a key of {' or '.join(options_with(keys[0]))} only"
    if keys:
        return f"{keys[0]}: {str(error.__cause__ or error).splitlines()[0]}"
    return " ".join(itertools.takewhile(lambda line: "search path" not in line, lines))


def _configure_logging() -> None:
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("paceline").setLevel(logging.INFO if _IS_FIRST else logging.ERROR)


def _fail(message: str, *, code: int = 2) -> None:
    if _IS_FIRST:
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"[bold red]error:[/] {message}"
        )
    else:
        time.sleep(_PATIENCE_SECONDS)
    sys.exit(code)
