"""Random, untrained two-layer Llama over bytes, generated in a moment, for smoke runs and tests.

Its tokenizer maps byte b to token b, so any text survives encoding and decoding. Four special tokens follow, and the
chat template is ChatML, as in SmolLM2 and Qwen.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from rollout.models.sources.cache import build_once
from rollout.models.sources.hf_files import write_checkpoint, write_tokenizer

VERSION = "v1"  # increase it when the generated files change, so that the cache is built again

BOS, IM_START, IM_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIAL_TOKENS = (BOS, IM_START, IM_END, PAD)  # ids 256, 257, 258, 259
VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
MAX_TOKENS = 2048

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_HIDDEN, _INTERMEDIATE, _LAYERS = 64, 128, 2
_HEADS, _KV_HEADS, _HEAD_DIM = 4, 2, 16


def resolve_tiny(cache_dir: Path) -> Path:
    """Return the model's directory under `cache_dir`. The first call generates it."""
    return build_once(cache_dir / f"tiny-{VERSION}", make_tiny_model)


def make_tiny_model(directory: Path, *, seed: int = 0) -> None:
    """Write the checkpoint to `directory`; the same `seed` gives the same bytes."""
    write_checkpoint(directory, config=_config(), weights=_weights(seed))
    write_byte_tokenizer(directory)


def write_byte_tokenizer(directory: Path) -> None:
    """Write the tokenizer's files and the chat template to `directory`."""
    write_tokenizer(
        directory,
        tokenizer=byte_tokenizer(),
        chat_template=CHAT_TEMPLATE,
        special_tokens={"bos_token": BOS, "eos_token": IM_END, "pad_token": PAD},
        max_length=MAX_TOKENS,
    )


def byte_tokenizer() -> Tokenizer:
    vocab = {character: byte for byte, character in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def _byte_characters() -> list[str]:
    """Return the printable character that represents each byte in the ByteLevel scheme of GPT-2."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)]


def _config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "hidden_size": _HIDDEN,
        "head_dim": _HEAD_DIM,
        "intermediate_size": _INTERMEDIATE,
        "max_position_embeddings": MAX_TOKENS,
        "num_attention_heads": _HEADS,
        "num_hidden_layers": _LAYERS,
        "num_key_value_heads": _KV_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": VOCAB_SIZE - 4,
        "eos_token_id": VOCAB_SIZE - 2,
        "pad_token_id": VOCAB_SIZE - 1,
        "torch_dtype": "bfloat16",
    }


def _weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, mean: float = 0.0, std: float) -> torch.Tensor:
        return (mean + std * torch.randn(shape, generator=generator)).to(torch.bfloat16)

    def linear(out_features: int, in_features: int) -> torch.Tensor:
        return normal(out_features, in_features, std=in_features**-0.5)

    def norm() -> torch.Tensor:
        return normal(
            _HIDDEN, mean=1.0, std=0.1
        )  # not all ones, so that a test notices a skipped norm weight

    # with 0.1 the next-token entropy is about 5 of at most 5.56 nats, and depends on the context
    weights = {"model.embed_tokens.weight": normal(VOCAB_SIZE, _HIDDEN, std=0.1)}
    for layer in range(_LAYERS):
        prefix = f"model.layers.{layer}."
        weights[prefix + "input_layernorm.weight"] = norm()
        weights[prefix + "self_attn.q_proj.weight"] = linear(_HEADS * _HEAD_DIM, _HIDDEN)
        weights[prefix + "self_attn.k_proj.weight"] = linear(_KV_HEADS * _HEAD_DIM, _HIDDEN)
        weights[prefix + "self_attn.v_proj.weight"] = linear(_KV_HEADS * _HEAD_DIM, _HIDDEN)
        weights[prefix + "self_attn.o_proj.weight"] = linear(_HIDDEN, _HEADS * _HEAD_DIM)
        weights[prefix + "post_attention_layernorm.weight"] = norm()
        weights[prefix + "mlp.gate_proj.weight"] = linear(_INTERMEDIATE, _HIDDEN)
        weights[prefix + "mlp.up_proj.weight"] = linear(_INTERMEDIATE, _HIDDEN)
        weights[prefix + "mlp.down_proj.weight"] = linear(_HIDDEN, _INTERMEDIATE)
    weights["model.norm.weight"] = norm()
    return weights
