"""Tree of YAML files: conf/ of this project, and the user's own directories, which take precedence."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig

__all__ = ["CONF", "QUIET_HYDRA", "composed", "groups", "options", "search_in_front"]

_PACKAGE = Path(__file__).resolve().parents[1]
CONF = next(
    p for p in (_PACKAGE.parent / "conf", _PACKAGE / "conf") if (p / "train.yaml").is_file()
)
"""Directory of the project's YAML files: next to rl/ in a checkout, inside it in an installed package."""
QUIET_HYDRA = (
    "hydra/hydra_logging=none",
    "hydra/job_logging=none",  # "disabled" would also silence Paceline's own warnings
    "hydra.output_subdir=null",
    "hydra.run.dir=.",
    "hydra.job.chdir=false",
    "hydra.sweep.subdir=.",
)
"""Overrides that keep Hydra from writing files of its own, because Paceline manages the run directory."""


class _OwnDirectories(SearchPathPlugin):
    """Plugin that puts the user's directories before conf/, so that a file there replaces one with the same name."""

    directories: tuple[Path, ...] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for directory in self.directories:
            main = SearchPathQuery(provider="main")
            search_path.prepend("command-line", f"file://{directory}", anchor=main)


def search_in_front(directories: Sequence[Path]) -> None:
    """Search directories of YAML files before conf/ in every later composition.

    Raises:
        ValueError: a path is not a directory.
    """
    for directory in directories:
        if not directory.is_dir():
            raise ValueError(f"--config-dir must name a directory, got {directory}")
    _OwnDirectories.directories = tuple(directory.resolve() for directory in directories)
    Plugins.instance().register(_OwnDirectories)


def groups() -> list[str]:
    """Return the names of the groups, which are directories of YAML files."""
    roots = (*_OwnDirectories.directories, CONF)
    names = {
        p.name for root in roots for p in root.iterdir() if p.is_dir() and any(p.glob("*.yaml"))
    }
    return sorted(name for name in names if not name.startswith(("_", ".")))


def options(group: str) -> list[str]:
    """Return the names of a group's options."""
    roots = (*_OwnDirectories.directories, CONF)
    return sorted({path.stem for root in roots for path in (root / group).glob("*.yaml")})


@contextmanager
def composing() -> Iterator[None]:
    """Initialize Hydra, so that `compose` and its config loader work inside the block."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield


def composed(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a primary config.

    Raises:
        HydraException, OmegaConfBaseException: see `rl.composition.sentences`.
    """
    with composing():
        return compose(config_name, overrides=list(overrides))
