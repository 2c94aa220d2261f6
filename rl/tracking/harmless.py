"""Guard for output that only people look at: a picture, table or line that fails costs a warning, never the run."""

import logging
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["Harmless"]

logger = logging.getLogger("paceline")


class Harmless:
    """Turns errors within its contexts into warnings, one for each kind of output."""

    def __init__(self) -> None:
        self._failed: set[str] = set()

    @contextmanager
    def __call__(self, what: str) -> Generator[None]:
        """Go on after an error within the block.

        Args:
            what: the output, as the warning names it.
        """
        try:
            yield
        # drawing libraries and terminals raise anything, and training is worth more than what they show
        except Exception as error:  # noqa: BLE001
            if what not in self._failed:
                self._failed.add(what)
                logger.warning(
                    "%s failed, and the run goes on: %s: %s", what, type(error).__name__, error
                )
