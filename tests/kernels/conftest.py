from collections.abc import Iterator

import pytest
import torch

from kernels.cpu.library import native_library


@pytest.fixture
def use_tensors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tensor path, as where there is no C compiler."""
    monkeypatch.setenv("PACELINE_NATIVE", "0")
    native_library.cache_clear()
    yield
    monkeypatch.undo()
    native_library.cache_clear()


@pytest.fixture(params=["native", "tensors"])
def either_path(request: pytest.FixtureRequest) -> None:
    """The test runs in C and in tensor operations."""
    if request.param == "tensors":
        request.getfixturevalue("use_tensors")
    else:
        assert native_library(torch.float32) is not None, "the tests need a C compiler"
