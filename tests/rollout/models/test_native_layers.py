"""All layers in one call: the bits of the decoder's own forward, in the stream and in the caches."""

import copy
from dataclasses import replace

import pytest
import torch

from kernels.attention import Segment, paged_attention, paged_layout
from kernels.decoder_layers import LinearWeights, make_decoder_layers
from kernels.paged_kv import PagedKV
from rollout.models.checkpoint import load_decoder
from rollout.models.families import table as family_table
from rollout.models.int8 import int8_decoder
from rollout.models.native_layers import layer_weights, native_layers
from tests.tiny_models import FAMILIES, save_tiny

BLOCK_SIZE, NUM_BLOCKS = 16, 12
TABLES = [[7, 3, 5, 2, 9], [1, 0, 4], [11]]
# of each step: the queries and the first position of each sequence
STEPS = [[(20, 0), (1, 0), (16, 0)], [(50, 20), (1, 1)], [(1, 70), (3, 2)]]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request, tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def decoder(request, family):
    return load_decoder(family, dtype=request.param)


def caches_of(model, *, is_int8):
    spec, dtype = model.spec, model.embed_tokens.dtype
    shape = (NUM_BLOCKS, spec.num_kv_heads, BLOCK_SIZE, spec.head_dim)

    def cache():
        return PagedKV.zeros(
            shape, dtype=dtype, is_int8=is_int8, make=lambda s, d: torch.zeros(s, dtype=d)
        )

    return [cache() for _ in range(spec.num_layers)]


def inputs_of(step):
    """Token ids, positions, block ids, offsets, layout."""
    positions, blocks, segments = [], [], []
    for (count, first), table in zip(step, TABLES, strict=False):
        segments.append(
            Segment(
                first_row=len(positions), num_queries=count, first_position=first, key_index=table
            )
        )
        blocks += [table[p // BLOCK_SIZE] for p in range(first, first + count)]
        positions += range(first, first + count)
    layout = paged_layout(segments, num_rows=len(positions), block_size=BLOCK_SIZE)
    at = torch.tensor(positions)
    return at * 31 % 250, at, torch.tensor(blocks), at % BLOCK_SIZE, layout


def op_by_op(decoder, caches, token_ids, positions, blocks, offsets, layout):
    def attend(layer, q, k, v):
        caches[layer].write(k, v, blocks, offsets)
        return paged_attention(q, caches[layer], layout)

    return decoder(token_ids, positions, attend)


@torch.inference_mode()
@pytest.mark.parametrize("has_int8_kv", [False, True])
@pytest.mark.parametrize("is_int8", [False, True])
def test_one_call_gives_the_bits_of_the_forward(decoder, is_int8, has_int8_kv):
    model = int8_decoder(decoder) if is_int8 else decoder
    expected_caches, caches = (caches_of(model, is_int8=has_int8_kv) for _ in range(2))
    native = native_layers(model, caches)
    assert native is not None
    for step in STEPS:
        token_ids, positions, *rest = inputs_of(step)
        expected = op_by_op(model, expected_caches, token_ids, positions, *rest)
        got = model.around(
            lambda x, angles, rest=rest: native(x, angles, *rest), token_ids, positions
        )
        assert torch.equal(got, expected)
        assert bool(got.any())
    for ours, theirs in zip(caches, expected_caches, strict=True):
        for a, b in zip(ours._tensors(), theirs._tensors(), strict=True):
            assert torch.equal(a, b)
    assert all(seconds > 0 for seconds in native.seconds.values())


@torch.inference_mode()
def test_a_broken_token_reaches_no_other_sequence(decoder):
    outputs = []
    for broken in (False, True):
        native = native_layers(decoder, caches_of(decoder, is_int8=True))
        assert native is not None
        _, positions, *rest = inputs_of(STEPS[0])
        x = torch.randn(
            len(positions), decoder.spec.hidden_size, generator=torch.Generator().manual_seed(0)
        ).to(decoder.embed_tokens.dtype)
        x[20] = float("nan") if broken else x[20]  # the second sequence's only token
        outputs.append(native(x, decoder.cos_sin[positions], *rest))
    good, bad = outputs
    assert bool(bad[20].isnan().all())
    others = [row for row in range(len(good)) if row != 20]
    assert torch.equal(good[others], bad[others])


def test_other_types_run_op_by_op(decoder):
    model = copy.deepcopy(decoder).to(torch.float16)
    assert native_layers(model, caches_of(model, is_int8=True)) is None


def test_weights_that_c_cannot_read_are_refused(decoder):
    spec = decoder.spec
    weights = layer_weights(next(decoder.decoder_layers))
    for weight in (
        weights.qkv.weight.double(),
        weights.qkv.weight.T,
        weights.qkv.weight.to(torch.int8),
    ):
        broken = replace(weights, qkv=LinearWeights(weight=weight))
        with pytest.raises(ValueError, match=r"contiguous torch\.(float32|bfloat16) tensors"):
            make_decoder_layers(
                [broken], caches_of(decoder, is_int8=False)[:1], num_heads=spec.num_heads, eps=1e-5
            )


def test_a_family_that_does_not_opt_in_runs_op_by_op(decoder, monkeypatch):
    name = decoder.spec.architecture
    assert native_layers(decoder, caches_of(decoder, is_int8=False)) is not None
    family = replace(family_table.FAMILIES[name], runs_in_one_call=False)
    monkeypatch.setitem(family_table.FAMILIES, name, family)
    assert native_layers(decoder, caches_of(decoder, is_int8=False)) is None
