import importlib.util
import os
from collections.abc import Iterator

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]  # there is no Triton for this system


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
