import json

import pytest
import torch
import xxhash

from rollout.weights.manifest import (
    FileSpec,
    Manifest,
    TensorSpec,
    combine_digests,
    describe_tensor,
    digest_tensor,
)

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int8, torch.bool]


def spec(name: str, digest: str = "xxh3_128:0") -> TensorSpec:
    return TensorSpec(name=name, shape=(2, 3), dtype="bfloat16", digest=digest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_digest_is_of_the_bytes_in_memory(dtype):
    tensor = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    stored = bytes(tensor.flatten().view(torch.uint8).tolist())
    assert len(stored) == 6 * tensor.element_size()
    assert digest_tensor(tensor) == f"xxh3_128:{xxhash.xxh3_128(stored).hexdigest()}"


def test_digest_sees_one_flipped_bit_and_the_sign_of_zero():
    tensor = torch.zeros(1000, dtype=torch.bfloat16)
    before = digest_tensor(tensor)
    tensor[-1] = -0.0
    assert digest_tensor(tensor) != before
    tensor[-1] = 0.0
    assert digest_tensor(tensor) == before


def test_digest_of_a_view_is_that_of_its_values():
    fused = torch.arange(24.0).view(4, 6)
    for view in (fused[1:3], fused[:, 2:5], fused.t(), fused[:, 0], fused[::2]):
        assert digest_tensor(view) == digest_tensor(
            view.clone(memory_format=torch.contiguous_format)
        )
    assert digest_tensor(fused.t()) != digest_tensor(fused)


def test_digest_takes_scalars_empty_tensors_and_parameters():
    assert digest_tensor(torch.tensor(1.5)) == digest_tensor(torch.tensor([1.5]))
    assert digest_tensor(torch.empty(0, 4)) == f"xxh3_128:{xxhash.xxh3_128(b'').hexdigest()}"
    assert digest_tensor(torch.nn.Parameter(torch.ones(3))) == digest_tensor(torch.ones(3))


def test_a_description_is_what_a_receiver_needs_to_check():
    assert describe_tensor("a.weight", torch.zeros(2, 3, dtype=torch.bfloat16)) == TensorSpec(
        name="a.weight",
        shape=(2, 3),
        dtype="bfloat16",
        digest=digest_tensor(torch.zeros(2, 3, dtype=torch.bfloat16)),
    )


def test_json_round_trip_keeps_everything_and_order():
    manifest = Manifest(
        version=7,
        tensors=(spec("b"), TensorSpec(name="a", shape=(), dtype="float32", digest="xxh3_128:1")),
        files=(FileSpec(name="model.safetensors", size=3, sha256="00ff"),),
    )
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Manifest.from_json(Manifest(version=0, tensors=()).to_json()).tensors == ()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 1}', '{"version": 1, "tensors": [{"name": "a"}], "files": []}'],
)
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(ValueError, match=r"manifest|Expecting value"):
        Manifest.from_json(text)


def test_an_unknown_key_of_a_tensor_is_refused():
    content = json.loads(Manifest(version=1, tensors=(spec("a"),)).to_json())
    content["tensors"][0]["encoding"] = "int8"
    with pytest.raises(ValueError, match="encoding"):
        Manifest.from_json(json.dumps(content))


def test_a_name_twice_is_refused():
    with pytest.raises(ValueError, match=r"got twice: \['a'\]"):
        Manifest(version=1, tensors=(spec("a"), spec("b"), spec("a")))


def test_the_combined_digest_ignores_order_and_sees_swapped_and_renamed_tensors():
    one, two = spec("a", "xxh3_128:1"), spec("b", "xxh3_128:2")
    digest = Manifest(version=1, tensors=(one, two)).digest
    assert Manifest(version=2, tensors=(two, one)).digest == digest
    assert combine_digests({"a": "xxh3_128:1", "b": "xxh3_128:2"}) == digest
    assert combine_digests({"a": "xxh3_128:2", "b": "xxh3_128:1"}) != digest
    assert combine_digests({"a": "xxh3_128:1"}) != digest
    assert combine_digests({"a": "xxh3_128:1", "c": "xxh3_128:2"}) != digest
