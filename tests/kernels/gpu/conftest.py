import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator

import pytest
import torch


def _why_not_interpreted() -> str:
    """Empty if this process interprets Triton."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "this process compiles Triton; TRITON_INTERPRET=1 interprets it"
    found = importlib.metadata.version("triton")
    return (
        ""
        if found.startswith("3.9.")
        else f"the interpreter's fixes are for Triton 3.9, not {found}"
    )


if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]  # there is no Triton for this system
elif not _why_not_interpreted():
    from tests.kernels.gpu.interpreter import install

    install()


@pytest.fixture(scope="session")
def interpreter() -> None:
    """Skips where kernels do not run in the interpreter."""
    if reason := _why_not_interpreted():
        pytest.skip(reason)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The interpreter on CPU tensors, every address checked; and the GPU where there is one."""
    if request.param == "cpu":
        request.getfixturevalue("interpreter")
        from tests.kernels.gpu.interpreter import checked

        with checked():
            yield "cpu"
        return
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this process interprets Triton; run without TRITON_INTERPRET")
    yield "cuda"
