import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(code: str, *path: Path) -> subprocess.CompletedProcess:
    """`code` in a fresh interpreter, with `path` ahead of the repository."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=path[0] if path else ROOT, env=environment, capture_output=True, text=True
    )


def last_line(result: subprocess.CompletedProcess) -> str:
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("package", ["rl", "rollout", "rollout.config"])
def test_another_package_named_kernels_is_refused_in_one_sentence(package, tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/__init__.py").write_text("def get_kernel(): ...\n__version__ = '0.18.2'\n")
    result = run(f"import {package}", tmp_path)
    assert result.returncode == 1
    assert last_line(result) == (
        "ImportError: Paceline's package `kernels` is hidden by another package of that name, found at "
        f"{tmp_path}/kernels/__init__.py; run `pip uninstall kernels`, then install Paceline again"
    )


def test_a_folder_without_init_is_named_too(tmp_path):
    # what is left of ours when `pip uninstall kernels` takes the __init__.py that both had
    (tmp_path / "kernels").mkdir()
    (tmp_path / "rollout").symlink_to(ROOT / "rollout")
    code = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; import rollout"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert f"found at {tmp_path}/kernels;" in last_line(result)


def test_the_hub_package_installed_behind_ours_is_refused(tmp_path):
    # transformers asks for its version, finds it, and would import names from ours
    metadata = tmp_path / "kernels-0.18.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")
    result = run("import rollout", tmp_path)
    assert result.returncode == 1
    assert last_line(result).startswith(
        "ImportError: the Hugging Face package `kernels` is installed,"
    )
    assert last_line(result).endswith("run `pip uninstall kernels`")


@pytest.mark.parametrize("package", ["rl", "rollout", "rollout.models.sources", "rollout.weights"])
def test_importing_a_package_loads_nothing_heavy(package):
    heavy = {
        "torch",
        "numpy",
        "transformers",
        "tokenizers",
        "huggingface_hub",
        "ray",
        "triton",
        "gguf",
    }
    result = run(f"import sys, {package}; print(sorted({heavy} & sys.modules.keys()))")
    assert (result.returncode, result.stdout) == (0, "[]\n"), result.stderr


def test_an_unknown_export_is_an_attribute_error():
    result = run("import rollout; assert 'Engine' in rollout.__all__; rollout.Trainer")
    assert last_line(result) == "AttributeError: module 'rollout' has no attribute 'Trainer'"


def test_transformers_works_beside_ours_and_does_not_take_ours_for_the_hub_package():
    # it goes by version: were ours ever numbered as one that transformers accepts, this fails
    code = """
import logging, sys, warnings
warnings.simplefilter("error")
import rl, rollout, kernels
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import is_kernels_available
assert not is_kernels_available()
import transformers.integrations.hub_kernels
AutoModelForCausalLM.from_config(LlamaConfig(
    hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8))
assert kernels.IS_PACELINE and sys.modules["kernels"] is kernels
"""
    result = run(code)
    assert (result.returncode, result.stderr) == (0, "")
