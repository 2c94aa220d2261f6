import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rollout.config import Dtype
from rollout.models.checkpoint import load_decoder, save_checkpoint, torch_dtype
from rollout.models.tensor_files import is_finite, read_tensors
from rollout.weights.store import WeightStore
from tests.tiny_models import FAMILIES, save_tiny

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    """Tied, with biases on some projections."""
    return save_tiny(tmp_path_factory.mktemp("qwen2"), "qwen2")


@pytest.fixture
def edited(tmp_path, qwen2):
    """A copy of the checkpoint with its tensors changed by a function."""

    def edit(change):
        (tmp_path / "config.json").write_bytes((qwen2 / "config.json").read_bytes())
        tensors = load_file(qwen2 / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "model.safetensors")
        return tmp_path

    return edit


def save(decoder, source, directory, **options):
    directory.mkdir()
    save_checkpoint(dict(decoder.hf_tensors()), source=source, directory=directory, **options)
    return directory


def logits_of(directory, dtype=torch.float32):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7, 255]])).logits


def assert_same_tensors(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def assert_shards_are_full(weight_map, weights, *, max_bytes):
    """No shard has room for the tensor that follows it, and only a single tensor is larger than a shard."""
    used, previous = 0, None
    for name, file in weight_map.items():
        size = 4 * weights[name].numel()
        if file == previous:
            assert used + size <= max_bytes, name
        elif previous is not None:
            assert used + size > max_bytes, name
        used = used + size if file == previous else size
        previous = file


# --- there and back


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_what_we_save(tmp_path, family):
    source = save_tiny(tmp_path / "source", family)
    decoder = load_decoder(source, dtype=torch.float32)
    saved = save(decoder, source, tmp_path / "saved", dtype=torch.float32)
    _, report = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(logits_of(saved), logits_of(source))


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_hold_every_tensor_once(tmp_path, family):
    source = save_tiny(tmp_path / "source", family)
    decoder = load_decoder(source, dtype=torch.float32)
    saved = save(decoder, source, tmp_path / "saved", dtype=torch.float32, max_shard_bytes=40_000)

    files = sorted(path.name for path in saved.glob("*.safetensors"))
    count = len(files)
    assert count > 3
    assert files == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    index = json.loads((saved / INDEX).read_text())
    weights = dict(decoder.hf_tensors())
    assert index["weight_map"].keys() == weights.keys()
    assert index["metadata"]["total_size"] == sum(4 * t.numel() for t in weights.values())
    for file in files:
        tensors = load_file(saved / file)
        assert set(tensors) == {n for n, f in index["weight_map"].items() if f == file}
    assert_shards_are_full(index["weight_map"], weights, max_bytes=40_000)

    again = load_decoder(saved, dtype=torch.float32)
    assert_same_tensors(dict(again.hf_tensors()), weights)
    assert torch.equal(logits_of(saved), logits_of(source))


def test_weights_are_rounded_to_the_saved_type_and_the_config_names_it(tmp_path, qwen2):
    decoder = load_decoder(qwen2, dtype=torch.float32)
    saved = save(decoder, qwen2, tmp_path / "saved")
    config = json.loads((saved / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert AutoConfig.from_pretrained(saved).dtype == torch.bfloat16
    rounded = {name: tensor.bfloat16() for name, tensor in decoder.hf_tensors()}
    assert_same_tensors(dict(read_tensors(saved)), rounded)


def test_the_saved_type_beats_the_older_torch_dtype_of_the_source(tmp_path, qwen2):
    source = tmp_path / "old"
    source.mkdir()
    config = json.loads((qwen2 / "config.json").read_text()) | {"torch_dtype": "bfloat16"}
    del config["dtype"]
    (source / "config.json").write_text(json.dumps(config))
    decoder = load_decoder(qwen2, dtype=torch.float32)
    saved = save(decoder, source, tmp_path / "saved", dtype=torch.float32)
    assert AutoConfig.from_pretrained(saved).dtype == torch.float32


def test_tokenizer_and_chat_template_come_along(tmp_path, qwen2):
    saved = save(load_decoder(qwen2, dtype=torch.float32), qwen2, tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(saved)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "<|im_start|>user\nhi<|im_end|>\n"
    assert tokenizer.encode("hi", add_special_tokens=False) == [104, 105]
    expected = {p.name for p in qwen2.iterdir()}
    assert {p.name for p in saved.iterdir()} == expected


def test_the_sources_own_shards_leave_no_trace(tmp_path, qwen2):
    decoder = load_decoder(qwen2, dtype=torch.float32)
    sharded = save(decoder, qwen2, tmp_path / "sharded", max_shard_bytes=40_000)
    saved = save(decoder, sharded, tmp_path / "saved", dtype=torch.float32)
    assert [p.name for p in saved.glob("model*")] == ["model.safetensors"]
    again = load_decoder(saved, dtype=torch.float32)
    assert_same_tensors(dict(again.hf_tensors()), dict(decoder.hf_tensors()))


def test_the_source_is_left_as_it_was(tmp_path, qwen2):
    before = {p.name: p.read_bytes() for p in qwen2.iterdir()}
    save(load_decoder(qwen2, dtype=torch.float32), qwen2, tmp_path / "saved")
    assert {p.name: p.read_bytes() for p in qwen2.iterdir()} == before


# --- loading


def test_loading_leaves_nothing_uninitialised(qwen2):
    # conftest fills torch.empty with NaN
    decoder = load_decoder(qwen2, dtype=torch.bfloat16)
    for name, parameter in decoder.named_parameters():
        assert parameter.dtype == torch.bfloat16, name
        assert parameter.isfinite().all(), name
        assert parameter.requires_grad, name
    assert decoder.cos_sin.shape == (512, 16)


def test_a_head_in_the_file_that_is_the_embedding_is_passed_over_where_they_are_tied(edited, qwen2):
    directory = edited(
        lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    )
    got, plain = (load_decoder(d, dtype=torch.float32) for d in (directory, qwen2))
    assert_same_tensors(dict(got.hf_tensors()), dict(plain.hf_tensors()))


def test_rope_frequencies_in_the_file_are_passed_over(edited, qwen2):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    directory = edited(lambda t: t.update({name: torch.ones(8)}))
    got, plain = (load_decoder(d, dtype=torch.float32) for d in (directory, qwen2))
    assert torch.equal(got.cos_sin, plain.cos_sin)
    assert_same_tensors(dict(got.hf_tensors()), dict(plain.hf_tensors()))


# --- what is refused


@pytest.mark.parametrize(
    "name",
    ["model.norm.weight", "model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.bias"],
)
def test_a_missing_tensor_is_named(edited, name):
    directory = edited(lambda t: t.pop(name))
    with pytest.raises(
        ValueError, match=f"lacks 1 tensors of its architecture, for example {name}"
    ):
        load_decoder(directory, dtype=torch.float32)


def test_missing_tensors_are_counted(edited):
    directory = edited(lambda t: [t.pop(n) for n in list(t) if "layers.1" in n])
    with pytest.raises(ValueError, match=r"lacks 12 tensors .* model\.layers\.1\.input_layernorm"):
        load_decoder(directory, dtype=torch.float32)


@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.o_proj.bias"]
)
def test_a_tensor_that_the_architecture_lacks_is_named(edited, name):
    directory = edited(lambda t: t.update({name: torch.ones(2)}))
    with pytest.raises(ValueError, match=f"{directory} .* does not have: {name}"):
        load_decoder(directory, dtype=torch.float32)


@pytest.mark.parametrize("shape", [(64,), (1, 64), (32, 128), (64, 64)])
def test_a_tensor_of_another_shape_is_named_with_both(edited, shape):
    # the first two would be broadcast by a copy
    name = "model.layers.1.self_attn.k_proj.weight"
    directory = edited(lambda t: t.update({name: torch.ones(shape)}))
    with pytest.raises(ValueError, match=rf"{name} .* must be \(32, 64\) .* got \({shape[0]},"):
        load_decoder(directory, dtype=torch.float32)


def test_weights_that_are_not_safetensors_are_refused(tmp_path, qwen2):
    (tmp_path / "config.json").write_bytes((qwen2 / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no model\.safetensors; weights must be in safetensors"):
        load_decoder(tmp_path, dtype=torch.float32)


def test_a_shard_that_the_index_names_and_the_directory_lacks_is_named(tmp_path, qwen2):
    decoder = load_decoder(qwen2, dtype=torch.float32)
    saved = save(decoder, qwen2, tmp_path / "saved", max_shard_bytes=40_000)
    lost = sorted(saved.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ValueError, match=f"{saved} has no {lost.name}"):
        load_decoder(saved, dtype=torch.float32)


def test_a_head_of_its_own_is_refused_where_the_config_says_that_it_is_the_embedding(edited):
    directory = edited(lambda t: t.update({"lm_head.weight": torch.full((260, 64), 7.0)}))
    with pytest.raises(ValueError, match=r"lm_head\.weight .* set tie_word_embeddings to false"):
        load_decoder(directory, dtype=torch.float32)


@pytest.mark.parametrize(
    "name",
    ["model.norm.weight", "model.embed_tokens.weight", "model.layers.1.self_attn.v_proj.bias"],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_tensor_with_one_element_that_is_not_finite_is_named(edited, name, value):
    def spoil(tensors):
        tensors[name].view(-1)[-1] = value

    with pytest.raises(ValueError, match=rf"{name} of .* holds NaN or infinite values"):
        load_decoder(edited(spoil), dtype=torch.float32)


def test_a_number_that_overflows_the_compute_type_is_refused(edited):
    def spoil(tensors):
        tensors["model.norm.weight"] = tensors["model.norm.weight"].double() + 1e300

    directory = edited(spoil)
    with pytest.raises(ValueError, match=r"model\.norm\.weight of .* in float32"):
        load_decoder(directory, dtype=torch.float32)
    load_decoder(directory, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_one_pass_finds_what_is_not_finite_anywhere(dtype):
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        tensor = torch.randn(7, 33, generator=generator).to(dtype)
        tensor *= 15000.0  # so large that a sum of half floats would overflow
        assert is_finite(tensor)
        place = int(torch.randint(tensor.numel(), (), generator=generator))
        for value in (float("nan"), float("inf"), float("-inf")):
            spoilt = tensor.clone()
            spoilt.view(-1)[place] = value
            assert not is_finite(spoilt)


def test_integers_are_not_taken_for_weights(edited):
    name = "model.norm.weight"
    directory = edited(lambda t: t.update({name: torch.ones(64, dtype=torch.int8)}))
    with pytest.raises(ValueError, match=r"floating-point numbers, got torch\.int8"):
        load_decoder(directory, dtype=torch.float32)


@pytest.mark.parametrize("keeps", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_named(edited, keeps):
    path = edited(lambda t: None) / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keeps)])
    with pytest.raises(ValueError, match=f"{path} is truncated or damaged"):
        load_decoder(path.parent, dtype=torch.float32)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}'])
def test_a_damaged_index_is_named(tmp_path, qwen2, content):
    saved = save(load_decoder(qwen2, dtype=torch.float32), qwen2, tmp_path / "saved")
    (saved / INDEX).write_text(content)
    with pytest.raises(ValueError, match=INDEX):
        load_decoder(saved, dtype=torch.float32)


@pytest.fixture
def published(tmp_path, qwen2):
    """A version in a store."""
    decoder = load_decoder(qwen2, dtype=torch.float32)
    weights = dict(decoder.hf_tensors())

    def write(directory):
        save_checkpoint(weights, source=qwen2, directory=directory, dtype=torch.float32)

    return WeightStore(tmp_path / "weights").publish(3, write)


def test_a_published_version_is_compared_with_its_digests(published):
    load_decoder(published, dtype=torch.float32)
    path = published / "model.safetensors"
    tensors = load_file(path)
    content = bytearray(path.read_bytes())
    place = content.find(tensors["model.layers.1.mlp.up_proj.weight"].numpy().tobytes())
    for i in range(place + 100, place + 164):  # 64 bytes
        content[i] ^= 1  # numbers stay finite
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight .* differ from the digest"
    ):
        load_decoder(published, dtype=torch.float32)
    (published / "manifest.json").unlink()
    load_decoder(published, dtype=torch.float32)


def test_a_folder_of_a_published_version_is_compared_with_the_versions_digests(tmp_path, qwen2):
    def write(directory):
        weights = dict(load_decoder(qwen2, dtype=torch.float32).hf_tensors())
        for target in (directory, directory / "ema"):
            target.mkdir(exist_ok=True)
            save_checkpoint(weights, source=qwen2, directory=target, dtype=torch.float32)

    path = WeightStore(tmp_path / "weights").publish(3, write) / "ema" / "model.safetensors"
    load_decoder(path.parent, dtype=torch.float32)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is not what was published"):
        load_decoder(path.parent, dtype=torch.float32)


def test_a_tensor_that_the_manifest_has_and_the_files_lack_is_named(published):
    tensors = load_file(published / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, published / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"lacks 1 tensors of its manifest\.json, for example model\.norm\.weight"
    ):
        load_decoder(published, dtype=torch.float32)


@pytest.mark.parametrize("content", ['{"name": "a web app"}', '{"tensors": [1]}'])
def test_a_manifest_of_something_else_is_passed_over(edited, content):
    directory = edited(lambda t: None)
    (directory / "manifest.json").write_text(content)
    load_decoder(directory, dtype=torch.float32)


# --- dtype


def test_auto_is_what_the_device_multiplies_natively(monkeypatch):
    for native in (torch.float32, torch.bfloat16):
        monkeypatch.setattr("rollout.models.checkpoint.native_dtype", lambda device, d=native: d)
        assert torch_dtype(Dtype.auto, "cpu") == native
        assert torch_dtype(Dtype.bfloat16, "cpu") == torch.bfloat16
        assert torch_dtype(Dtype.float32, "cpu") == torch.float32
