from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout.models.sources.tiny import make_tiny_model
from tests.rl.trainer.rank_pool import RankPool


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[RankPool]:
    pool = RankPool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the tiny model, in Hugging Face's format; only read."""
    directory = tmp_path_factory.mktemp("tiny")
    make_tiny_model(directory)
    return directory
