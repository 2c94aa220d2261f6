"""Command line program `paceline`; scripts/*.py run the same commands from a checkout."""

import difflib
import importlib
import sys
from typing import Any, NoReturn

from rl.cli import launch
from rl.version import version_text

__all__ = ["main", "run_command"]

_COMMANDS = {
    "train": ("rl.trainer.run", "train", "post-train a language model"),
    "evaluate": ("rl.evaluate", "evaluate_model", "measure accuracy on held-out prompts"),
    "generate": ("rl.generate", "generate", "print completions of prompts"),
    "report": ("rl.report", "report", "compare runs in one picture and one table"),
}
"""Module, function and description of each command."""


def run_command(name: str) -> NoReturn:
    """Run one command with the arguments in `sys.argv`; see `rl.cli.launch` for exit codes."""
    module, function, _ = _COMMANDS[name]

    def task(config: Any) -> int | None:
        # imported late, because torch takes seconds to import and a mistake in the config should be reported before
        return getattr(importlib.import_module(module), function)(config)

    launch(task, config_name=name)


def main() -> NoReturn:
    """Run the command that the first argument names."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        sys.stdout.write(_usage())
        sys.exit(0)
    if name == "--version":
        sys.stdout.write(f"{version_text()}\n")
        sys.exit(0)
    if name not in _COMMANDS:
        near = difflib.get_close_matches(name, _COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"commands are {', '.join(_COMMANDS)}"
        sys.stderr.write(f"error: there is no command {name!r}; {hint}\n")
        sys.exit(2)
    sys.argv[1:] = arguments
    run_command(name)


def _usage() -> str:
    lines = [f"  paceline {name:10}{purpose}" for name, (_, _, purpose) in _COMMANDS.items()]
    head = "paceline COMMAND [flags] [group=option] [key=value]; COMMAND --help shows more"
    return "\n".join([head, "", *lines]) + "\n"
