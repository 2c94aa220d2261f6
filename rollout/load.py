"""Loader of a model and its tokenizer from one directory, checked against each other."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rollout.config import ModelConfig
from rollout.models.checkpoint import load_decoder
from rollout.models.decoder import Decoder
from rollout.text.ends import Ends, resolve_ends
from rollout.text.tokenizer import check_vocabulary, load_tokenizer
from rollout.weights.lease import hold_lease

__all__ = ["LoadedModel", "load_model"]

logger = logging.getLogger("paceline")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    decoder: Decoder
    """Decoder; its `spec.eos_token_ids` equal `ends.token_ids`."""
    tokenizer: Any
    ends: Ends


def load_model(
    directory: Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    model: ModelConfig | None = None,
    weights: Path | None = None,
) -> LoadedModel:
    """Load a decoder and its tokenizer, and find the tokens that end a completion.

    Sources that disagree about these tokens are logged as warnings.

    Args:
        directory: directory of the model and its tokenizer.
        dtype: dtype of the decoder.
        device: device of the decoder.
        model: config whose chat template is used; None: the tokenizer's own template.
        weights: another directory to load the weights from, of the same architecture.

    Raises:
        ValueError: the files are damaged or not supported, or the tokenizer has ids beyond the embedding.
    """
    with hold_lease(directory), hold_lease(weights or directory):
        tokenizer = load_tokenizer(directory, model)
        ends = resolve_ends(directory, tokenizer)
        decoder = load_decoder(weights or directory, dtype=dtype, device=device)
    check_vocabulary(tokenizer, decoder.spec.vocab_size, directory)
    for warning in ends.warnings:
        logger.warning("%s", warning)
    decoder.spec = replace(decoder.spec, eos_token_ids=ends.token_ids)
    return LoadedModel(decoder, tokenizer, ends)
