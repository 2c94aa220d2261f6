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
