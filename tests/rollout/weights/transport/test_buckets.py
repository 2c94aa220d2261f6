import itertools

import pytest
import torch

from rollout.weights.manifest import describe_layout
from rollout.weights.transport.buckets import ALIGNMENT, BucketPlan, Landing

DTYPES = [
    torch.bfloat16,
    torch.int8,
    torch.float32,
    torch.float64,
    torch.bool,
    torch.float8_e4m3fn,
]
SIZES = [(), (0, 4), (1,), (31,), (32,), (33,), (3, 5), (8, 64), (129,)]


def awkward_weights() -> dict[str, torch.Tensor]:
    """Every type in sizes below, at and above lines and buckets; no two bytes patterns alike."""
    weights = {}
    for i, (shape, dtype) in enumerate(itertools.product(SIZES, DTYPES)):
        count = torch.Size(shape).numel() * dtype.itemsize
        raw = (torch.arange(count) * 7 + i).remainder(251).to(torch.uint8)
        if dtype is torch.bool:
            raw %= 2
        weights[f"{i}.{dtype}"] = raw.view(dtype).view(shape)
    return weights


def plan_of(weights: dict[str, torch.Tensor], bucket_bytes: int) -> BucketPlan:
    return BucketPlan(describe_layout(1, weights.items()).tensors, bucket_bytes=bucket_bytes)


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    flat = [t.contiguous().view(-1).view(torch.uint8) for t in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*flat)


def transfer(
    plan: BucketPlan, weights: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]
) -> int:
    """Through one buffer full of rubbish; returns how many buckets went straight into their target."""
    buffer = torch.full((plan.bucket_bytes,), 255, dtype=torch.uint8)
    landing, num_direct = Landing(plan, targets), 0
    for bucket, filled in enumerate(plan.pack(weights.items(), lambda _: buffer)):
        assert filled.shape == (plan.size(bucket),)
        direct = landing.direct(bucket)
        if direct is None:
            landing.unpack(bucket, filled)
        else:
            direct.copy_(filled)
            num_direct += 1
    landing.finish()
    return num_direct


@pytest.mark.parametrize("bucket_bytes", [64, 128, 192, 1024, 1 << 20])
def test_every_byte_arrives_through_buckets_of_any_size(bucket_bytes):
    weights = awkward_weights()
    plan = plan_of(weights, bucket_bytes)
    targets = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    transfer(plan, weights, targets)
    for name, tensor in weights.items():
        assert same_bytes(targets[name], tensor), name
    assert sum(plan.size(b) for b in range(len(plan.buckets))) == plan.num_bytes
    assert all(0 < plan.size(b) <= bucket_bytes for b in range(len(plan.buckets)))


def test_pieces_cover_every_tensor_once_and_are_aligned():
    weights = awkward_weights()
    plan = plan_of(weights, 192)
    seen = dict.fromkeys(weights, 0)
    for pieces in plan.buckets:
        for piece in pieces:
            assert piece.tensor_offset == seen[piece.name]
            assert piece.bucket_offset % ALIGNMENT == 0
            assert piece.bucket_offset + piece.num_bytes <= 192
            seen[piece.name] += piece.num_bytes
    assert seen == {name: tensor.nbytes for name, tensor in weights.items()}


def test_a_tensor_larger_than_a_bucket_goes_straight_into_its_target():
    weights = {"a": torch.arange(8.0), "big": torch.arange(100.0), "z": torch.arange(3.0)}
    targets = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    # bytes: a at 0, big at 64 to 464, z at 512; the buckets from 128, 256 hold big alone, that from 384 its end
    assert transfer(plan_of(weights, 128), weights, targets) == 2
    assert all(torch.equal(targets[name], weights[name]) for name in weights)


def test_sources_and_targets_need_not_be_contiguous_and_their_neighbours_stay():
    source = torch.arange(60.0).view(6, 10)
    weights = {"columns": source[:, 2:7], "transposed": source.t(), "rows": source[1:3]}
    holder = torch.full((6, 10), -1.0)
    targets = {
        "columns": holder[:, 3:8],
        "transposed": torch.zeros(6, 10).t(),
        "rows": torch.zeros(2, 10),
    }
    transfer(plan_of(weights, 64), weights, targets)
    assert all(torch.equal(targets[name], weights[name]) for name in weights)
    assert (holder[:, [0, 1, 2, 8, 9]] == -1).all()


def test_a_tensor_is_not_read_once_the_next_is_asked_for():
    """So a sharded trainer may gather all into the same memory."""
    weights = {str(i): torch.full((100,), float(i)) for i in range(6)}
    gathered = torch.empty(100)
    plan = plan_of(weights, 256)
    targets = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    buffer, landing = torch.zeros(256, dtype=torch.uint8), Landing(plan, targets)
    one_by_one = ((name, gathered.copy_(tensor)) for name, tensor in weights.items())
    for bucket, filled in enumerate(plan.pack(one_by_one, lambda _: buffer)):
        landing.unpack(bucket, filled)
    assert all(torch.equal(targets[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("came", "message"),
    [
        ([("a", torch.zeros(3))], "2 tensors are planned, and none came for b"),
        (
            [("b", torch.zeros(2)), ("a", torch.zeros(3))],
            r"a, float32\[3\], is planned next, got b",
        ),
        ([("a", torch.zeros(1, 3))], r"a, float32\[3\], is planned next, got a, float32\[1, 3\]"),
        ([("a", torch.zeros(3).bfloat16())], r"planned next, got a, bfloat16\[3\]"),
        (
            [("a", torch.zeros(3)), ("b", torch.zeros(2)), ("c", torch.zeros(1))],
            "2 tensors are planned, and more came: c",
        ),
    ],
)
def test_other_weights_than_planned_are_refused(came, message):
    plan = plan_of({"a": torch.zeros(3), "b": torch.zeros(2)}, 64)
    with pytest.raises(ValueError, match=message):
        list(plan.pack(came, lambda _: torch.zeros(64, dtype=torch.uint8)))


@pytest.mark.parametrize("bucket_bytes", [0, -64, 100])
def test_a_bucket_is_a_multiple_of_a_line(bucket_bytes):
    with pytest.raises(ValueError, match=f"a positive multiple of 64, got {bucket_bytes}"):
        BucketPlan((), bucket_bytes=bucket_bytes)
