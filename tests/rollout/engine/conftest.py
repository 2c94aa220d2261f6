from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny_models import save_tiny


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def other_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model of the same architecture with other weights."""
    return save_tiny(tmp_path_factory.mktemp("other"), "llama", seed=1)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny models run faster without the hand-over between threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
