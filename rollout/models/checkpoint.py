"""Loading and saving of decoders as Hugging Face directories, with Hugging Face's tensor names."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from kernels.numerics import native_dtype
from rollout.config import Dtype
from rollout.models.decoder import Decoder
from rollout.models.decoder_spec import DecoderSpec
from rollout.models.spec import read_spec
from rollout.models.tensor_files import INDEX, SINGLE, is_finite, read_tensors
from rollout.weights.manifest import MANIFEST

__all__ = ["empty_decoder", "load_decoder", "save_checkpoint", "torch_dtype"]


def torch_dtype(dtype: Dtype, device: torch.device | str) -> torch.dtype:
    """Return the torch dtype of a config's dtype. `auto` is bfloat16 where the device multiplies it natively, else
    float32."""
    return native_dtype(device) if dtype is Dtype.auto else getattr(torch, dtype.value)


def load_decoder(
    directory: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Decoder:
    """Build the decoder that `config.json` describes, and fill it from the safetensors files.

    Raises:
        ValueError: the architecture is not supported, or a tensor is missing, unexpected, damaged, not finite, or has
            the wrong shape.
    """
    decoder = empty_decoder(read_spec(directory), dtype=dtype, device=device)
    _fill(dict(decoder.hf_tensors()), directory, is_tied=decoder.spec.tie_word_embeddings)
    return decoder


def empty_decoder(
    spec: DecoderSpec,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    is_int8: bool = False,
) -> Decoder:
    """Build a decoder with uninitialized weights."""
    with torch.device("meta"):
        decoder = Decoder(spec, is_int8=is_int8)
    decoder = decoder.to(dtype).to_empty(device=device)
    decoder.build_rope_table(device)
    return decoder


@torch.no_grad()
def _fill(targets: Mapping[str, torch.Tensor], directory: Path, *, is_tied: bool) -> None:
    missing = set(targets)
    tied_head = None
    for name, tensor in read_tensors(directory):
        if name == "lm_head.weight" and is_tied:
            tied_head = tensor
            continue
        if name.endswith("rotary_emb.inv_freq"):
            continue
        _check_fits(name, tensor, targets, directory)
        targets[name].copy_(tensor)
        if not is_finite(targets[name]):
            raise ValueError(
                f"{name} of {directory} holds NaN or infinite values in {str(targets[name].dtype).removeprefix('torch.')}; "
                "take a checkpoint whose weights are finite"
            )
        missing.discard(name)
    if missing:
        raise ValueError(
            f"{directory} lacks {len(missing)} tensors of its architecture, for example {sorted(missing)[0]}"
        )
    if tied_head is not None:
        _check_tied(tied_head, targets["model.embed_tokens.weight"], directory)


def _check_fits(
    name: str, tensor: torch.Tensor, targets: Mapping[str, torch.Tensor], directory: Path
) -> None:
    if name not in targets:
        raise ValueError(f"{directory} holds a tensor that its architecture does not have: {name}")
    if tensor.shape != targets[name].shape:
        raise ValueError(
            f"{name} of {directory} must be {tuple(targets[name].shape)} by its config.json, "
            f"got {tuple(tensor.shape)}"
        )
    if not tensor.is_floating_point():
        raise ValueError(
            f"{name} of {directory} must hold floating-point numbers, got {tensor.dtype}: quantized weights are not supported"
        )


def _check_tied(head: torch.Tensor, embedding: torch.Tensor, directory: Path) -> None:
    """Raise a ValueError if lm_head.weight differs from the embedding although config.json ties them; transformers
    would use it."""
    if not torch.equal(head.to(embedding.device, embedding.dtype), embedding):
        raise ValueError(
            f"lm_head.weight of {directory} must equal model.embed_tokens.weight as its config.json says "
            "tie_word_embeddings=true, but it differs; set tie_word_embeddings to false there"
        )


def save_checkpoint(
    named_weights: Mapping[str, torch.Tensor],
    *,
    source: Path,
    directory: Path,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_bytes: int = 4_000_000_000,
) -> None:
    """Write a Hugging Face directory: the weights, and copies of the config, tokenizer and chat template of `source`.

    Args:
        named_weights: weights by Hugging Face's names.
        source: directory from which the model was loaded.
        directory: existing directory to write to.
        dtype: dtype of the saved weights.
        max_shard_bytes: maximum size of one safetensors file.
    """
    for path in sorted(source.iterdir()):
        if (
            path.is_file()
            and path.suffix in (".json", ".jinja", ".txt", ".model")
            and path.name not in (INDEX, MANIFEST)
        ):
            shutil.copyfile(path, directory / path.name)
    config = json.loads((directory / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shards = _shards(named_weights, dtype.itemsize, max_shard_bytes)
    files = (
        [SINGLE] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    )
    for file, names in zip(files, shards, strict=True):
        tensors = {n: named_weights[n].detach().to("cpu", dtype).contiguous() for n in names}
        save_file(tensors, str(directory / file), metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {n: file for file, names in zip(files, shards, strict=True) for n in names}
        total = sum(t.numel() * dtype.itemsize for t in named_weights.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _shards(
    named_weights: Mapping[str, torch.Tensor], itemsize: int, max_bytes: int
) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, tensor in named_weights.items():
        size = tensor.numel() * itemsize
        if shards[-1] and used + size > max_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"
