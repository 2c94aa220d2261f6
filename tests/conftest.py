import importlib.metadata
import importlib.util
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported
    os.environ.setdefault(
        "OPENBLAS_NUM_THREADS", "1"
    )  # of its numpy: threads make small products 10 times slower

import pytest
import torch


@pytest.fixture(autouse=True)
def poison_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` returns NaN, so code that skips a cell fails instead of passing by luck."""
    original = torch.empty

    def poisoned(*args, **kwargs):
        out = original(*args, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    monkeypatch.setattr(torch, "empty", poisoned)


def _why_not_interpreted() -> str:
    """Returns an empty string if this process interprets Triton."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "this process compiles Triton; TRITON_INTERPRET=1 interprets it"
    if importlib.util.find_spec("triton") is None:
        return "there is no Triton for this system"
    found = importlib.metadata.version("triton")
    is_known = found.startswith("3.9.")
    return "" if is_known else f"the interpreter's fixes are for Triton 3.9, not {found}"


@pytest.fixture(scope="session")
def interpreter() -> None:
    """Kernels run in Triton's interpreter, with the arithmetic of a GPU; skips where they cannot."""
    if reason := _why_not_interpreted():
        pytest.skip(reason)
    from tests.kernels.gpu.interpreter import install

    install()
