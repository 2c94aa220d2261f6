"""Conversion of a Llama in llama.cpp's GGUF format to a bfloat16 Hugging Face checkpoint.

transformers reads GGUF too, but needs `accelerate` for it, and drops the digit splitting of the "smollm"
pre-tokenizer, which moves token boundaries next to numbers ("\\n\\n12").
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from rollout.models.sources.hf_files import write_checkpoint, write_tokenizer

_MODULES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN = 3  # in tokenizer.ggml.token_type


def convert_gguf_llama(source: Path, directory: Path) -> None:
    """Write the model and the tokenizer of `source` to `directory` as a Hugging Face checkpoint.

    Raises:
        ValueError: the file has an architecture, a tokenizer or a tensor that is not supported.
    """
    reader = GGUFReader(source)
    _require_known(reader, "general.architecture", "llama")
    _require_known(reader, "tokenizer.ggml.model", "gpt2")
    _require_known(reader, "tokenizer.ggml.pre", "smollm")
    config = _config(reader)
    write_checkpoint(directory, config=config, weights=_weights(reader, config))
    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    write_tokenizer(
        directory,
        tokenizer=_tokenizer(reader, tokens),
        chat_template=_field(reader, "tokenizer.chat_template"),
        special_tokens={
            "bos_token": tokens[config["bos_token_id"]],
            "eos_token": tokens[config["eos_token_id"]],
            "pad_token": tokens[config["pad_token_id"]],
            "unk_token": tokens[_field(reader, "tokenizer.ggml.unknown_token_id")],
        },
        max_length=config["max_position_embeddings"],
    )


def _config(reader: GGUFReader) -> dict[str, Any]:
    hidden_size = _field(reader, "llama.embedding_length")
    num_heads = _field(reader, "llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "head_dim": hidden_size // num_heads,
        "intermediate_size": _field(reader, "llama.feed_forward_length"),
        "max_position_embeddings": _field(reader, "llama.context_length"),
        "num_attention_heads": num_heads,
        "num_hidden_layers": _field(reader, "llama.block_count"),
        "num_key_value_heads": _field(reader, "llama.attention.head_count_kv"),
        # stored as float32: 1e-5 reads 9.999999747378752e-06
        "rms_norm_eps": float(f"{_field(reader, 'llama.attention.layer_norm_rms_epsilon'):.7g}"),
        "rope_theta": float(_field(reader, "llama.rope.freq_base")),
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
        "vocab_size": _field(reader, "llama.vocab_size"),
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
        "torch_dtype": "bfloat16",
    }


def _weights(reader: GGUFReader, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)  # [out, in] float32
        name = _hf_name(tensor.name)
        if name.endswith(".q_proj.weight"):
            values = _rotate_half_order(values, num_heads=config["num_attention_heads"])
        if name.endswith(".k_proj.weight"):
            values = _rotate_half_order(values, num_heads=config["num_key_value_heads"])
        weights[name] = torch.tensor(values, dtype=torch.bfloat16)
    return weights


def _rotate_half_order(weight: np.ndarray, *, num_heads: int) -> np.ndarray:
    """Reorder the rows of each head from GGUF's (0, d/2, 1, d/2+1, ...) to Hugging Face's (0, 1, ..., d-1)."""
    pairs = weight.reshape(num_heads, -1, 2, weight.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


def _hf_name(name: str) -> str:
    if name == "output.weight":
        return "lm_head.weight"
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
    if match is None or match[2] not in _MODULES:
        raise ValueError(f"the GGUF file holds a tensor that a Llama does not have: {name}")
    layer = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{layer}{_MODULES[match[2]]}.weight"


def _tokenizer(reader: GGUFReader, tokens: list[str]) -> Tokenizer:
    """Build the byte-level BPE tokenizer. It splits numbers into digits, as SmolLM's own tokenizer.json does."""
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = _field(reader, "tokenizer.ggml.token_type")
    control = [token for token, type_ in zip(tokens, types, strict=True) if type_ == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control])
    return tokenizer


def _require_known(reader: GGUFReader, key: str, known: str) -> None:
    value = _field(reader, key)
    if value != known:
        raise ValueError(f"{key} of the GGUF file must be {known!r}, got {value!r}")


def _field(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise ValueError(f"the GGUF file has no field {key}")
    return field.contents()
