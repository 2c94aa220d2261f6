import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from rollout.models.sources.tiny import SPECIAL_TOKENS, VOCAB_SIZE
from tests.tiny_models import save_tiny

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None,
    reason="needs the extra: pip install paceline[smollm2]",
)

HEADS = {"q_proj": 4, "k_proj": 2}
GGUF_NAMES = {
    "embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def as_gguf(name: str, tensor: torch.Tensor) -> tuple[str, np.ndarray]:
    """As llama.cpp's convert_hf_to_gguf.py names and permutes it."""
    key = next(key for key in GGUF_NAMES if key in name)
    weight = tensor.float().numpy()
    if key in HEADS:
        halves = weight.reshape(HEADS[key], 2, -1, weight.shape[-1])
        weight = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
    layer = f"blk.{name.split('.')[2]}." if "layers" in name else ""
    return f"{layer}{GGUF_NAMES[key]}.weight", weight


def write_gguf(path: Path, checkpoint: Path, *, departures: dict[str, str] | None = None) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter, TokenType  # an extra

    strings = {"general.architecture": "llama", "tokenizer.ggml.pre": "smollm"} | (departures or {})
    writer = GGUFWriter(path, arch=strings["general.architecture"])
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB_SIZE)

    vocab = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"]
    # one merge, in the place of a byte that UTF-8 never uses
    tokens = ["ĊĊ" if byte == 255 else character for character, byte in vocab.items()]
    types = [TokenType.NORMAL] * 256 + [TokenType.CONTROL] * 4
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(strings["tokenizer.ggml.pre"])
    writer.add_token_list([*tokens, *SPECIAL_TOKENS])
    writer.add_token_types(types)
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_pad_token_id(259)
    writer.add_unk_token_id(256)
    writer.add_chat_template("{{ messages }}")

    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        gguf_name, weight = as_gguf(name, tensor)
        writer.add_tensor(gguf_name, weight, raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert(
    tmp_path: Path, *, departures: dict[str, str] | None = None, **overrides: object
) -> tuple[Path, Path]:
    from rollout.models.sources.gguf_llama import convert_gguf_llama  # imports gguf

    original, converted = tmp_path / "original", tmp_path / "converted"
    save_tiny(original, "llama", dtype=torch.bfloat16, **overrides)
    write_gguf(tmp_path / "model.gguf", original, departures=departures)
    converted.mkdir()
    convert_gguf_llama(tmp_path / "model.gguf", converted)
    return original, converted


@pytest.mark.parametrize("tied", [True, False])
def test_weights_and_config_come_back_as_they_were(tmp_path, tied):
    original, converted = convert(tmp_path, tie_word_embeddings=tied)
    before, after = (load_file(path / "model.safetensors") for path in (original, converted))
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert after[name].dtype is torch.bfloat16
        assert torch.equal(after[name], tensor), name

    named_anew = {"_name_or_path": None, "bos_token_id": 257}
    old, new = (AutoConfig.from_pretrained(path).to_dict() for path in (original, converted))
    assert new | named_anew == old | named_anew


def test_the_tokenizer_splits_digits_first_and_knows_its_special_tokens(tmp_path):
    _, converted = convert(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert tokenizer.tokenize("a\n\n12") == ["a", "ĊĊ", "1", "2"]
    assert tokenizer.tokenize("\n\na") == ["Ċ", "Ċ", "a"]  # GPT-2 leaves the last space to the word
    assert tokenizer.encode("<|im_start|>é") == [257, 0xC3, 0xA9]
    assert tokenizer.decode([257, 97, 258], skip_special_tokens=True) == "a"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("key", "value"), [("general.architecture", "qwen2"), ("tokenizer.ggml.pre", "llama-bpe")]
)
def test_another_kind_of_file_is_refused(tmp_path, key, value):
    with pytest.raises(ValueError, match=rf"{key} of the GGUF file must be .*, got '{value}'"):
        convert(tmp_path, departures={key: value})


def test_a_tensor_without_a_place_in_a_llama_is_refused():
    from rollout.models.sources.gguf_llama import _hf_name  # imports gguf

    for name in (
        "blk.0.attn_q.bias",
        "blk.0.attn_q_norm.weight",
        "rope_freqs.weight",
        "blk.x.attn_q.weight",
    ):
        with pytest.raises(ValueError, match=name):
            _hf_name(name)
