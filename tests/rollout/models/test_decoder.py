from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM

from kernels.attention import Segment, packed_attention, packed_layout
from kernels.linear_logprobs import linear_logprobs
from rollout.models.checkpoint import load_decoder
from tests.tiny_models import FAMILIES, save_tiny

# past a key block, and short; the second begins at position 0 again
LENGTHS = [70, 9]


@pytest.fixture(scope="module")
def directory_of(tmp_path_factory):
    """The directory of a family's tiny checkpoint, made once."""
    made = {}

    def directory(family):
        if family not in made:
            made[family] = save_tiny(tmp_path_factory.mktemp(family), family)
        return made[family]

    return directory


def load_hf(directory, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


def make_sequences(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(260, (length,), generator=generator) for length in lengths]


def hidden_states(decoder, sequences):
    """Of the packed sequences, each from position 0."""
    segments, row = [], 0
    for tokens in sequences:
        rows = range(row, row + len(tokens))
        segments.append(
            Segment(first_row=row, num_queries=len(tokens), first_position=0, key_index=rows)
        )
        row += len(tokens)
    layout = packed_layout(segments, num_rows=row)
    positions = torch.cat([torch.arange(len(tokens)) for tokens in sequences])
    return decoder(
        torch.cat(sequences), positions, lambda layer, q, k, v: packed_attention(q, k, v, layout)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_match_transformers(directory_of, family):
    decoder = load_decoder(directory_of(family), dtype=torch.float32)
    hf = load_hf(directory_of(family))
    sequences = make_sequences()
    with torch.no_grad():
        got = decoder.logits(hidden_states(decoder, sequences)).split(LENGTHS)
        expected = [hf(tokens[None]).logits[0] for tokens in sequences]
    for actual, truth in zip(got, expected, strict=True):
        assert truth.std() > 0.1, "flat logits would match by themselves"
        torch.testing.assert_close(actual, truth, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen3", "llama_untied_bias_rope3"])
def test_bfloat16_logits_are_as_close_to_float32_as_those_of_transformers(directory_of, family):
    (tokens,) = make_sequences([40])
    directory = directory_of(family)
    with torch.no_grad():
        truth = load_hf(directory)(tokens[None]).logits[0]
        peer = load_hf(directory, torch.bfloat16)(tokens[None]).logits[0]
        decoder = load_decoder(directory, dtype=torch.bfloat16)
        got = decoder.logits(hidden_states(decoder, [tokens]))
    assert got.dtype == torch.bfloat16
    assert decoder.cos_sin.dtype == torch.float32
    error, budget = ((x.float() - truth).square().mean().sqrt() for x in (got, peer))
    assert error <= 1.5 * budget


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_sequence_is_the_same_bits_alone_and_packed(directory_of, dtype):
    decoder = load_decoder(directory_of("llama_untied_bias_rope3"), dtype=dtype)
    sequences = make_sequences([3, 66, 1])
    with torch.no_grad():
        packed = hidden_states(decoder, sequences).split([3, 66, 1])
        for tokens, expected in zip(sequences, packed, strict=True):
            assert torch.equal(hidden_states(decoder, [tokens]), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_match_transformers_under_their_names(directory_of, family):
    decoder = load_decoder(directory_of(family), dtype=torch.float64)
    hf = load_hf(directory_of(family), torch.float64)
    sequences = make_sequences([40, 9])
    targets = torch.cat([tokens.roll(-1) for tokens in sequences])
    logprobs, _ = linear_logprobs(hidden_states(decoder, sequences), decoder.lm_head, targets)
    logprobs.sum().backward()
    logits = torch.cat([hf(tokens[None]).logits[0] for tokens in sequences])
    (-torch.nn.functional.cross_entropy(logits, targets, reduction="sum")).backward()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(parameter.grad)  # so that hf_tensors names the gradients
    got = dict(decoder.hf_tensors())
    expected = dict(hf.named_parameters())
    assert got.keys() == expected.keys()
    # transformers takes the angles of RoPE and the norms in float32
    for name, parameter in expected.items():
        torch.testing.assert_close(
            got[name], parameter.grad, rtol=1e-4, atol=1e-4, msg=partial("{}: {}".format, name)
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_has_the_name_and_the_values_that_transformers_gives_it(directory_of, family):
    decoder = load_decoder(directory_of(family), dtype=torch.float32)
    expected = dict(load_hf(directory_of(family)).state_dict())
    if decoder.spec.tie_word_embeddings:
        del expected["lm_head.weight"]
    got = list(decoder.hf_tensors())
    assert len(got) == len(dict(got)), "each name once"
    assert dict(got).keys() == expected.keys()
    for name, tensor in got:
        assert torch.equal(tensor, expected[name]), name


def test_hf_tensors_are_the_parameters_themselves(directory_of):
    decoder = load_decoder(directory_of("qwen2"), dtype=torch.float32)
    storages = {p.untyped_storage().data_ptr() for p in decoder.parameters()}
    assert {t.untyped_storage().data_ptr() for _, t in decoder.hf_tensors()} == storages
    count = sum(t.numel() for _, t in decoder.hf_tensors())
    assert count == sum(p.numel() for p in decoder.parameters())


def test_a_tied_head_is_the_embedding(directory_of):
    tied = load_decoder(directory_of("qwen2"), dtype=torch.float32)
    untied = load_decoder(directory_of("qwen3"), dtype=torch.float32)
    assert tied.lm_head is tied.embed_tokens
    assert untied.lm_head is not untied.embed_tokens


def test_a_context_as_long_as_the_sliding_window_matches_transformers(tmp_path):
    directory = save_tiny(tmp_path, "mistral", sliding_window=8)
    decoder, hf = load_decoder(directory, dtype=torch.float32), load_hf(directory)
    (tokens,) = make_sequences([9])
    with torch.no_grad():
        got = decoder.logits(hidden_states(decoder, [tokens[:8]]))
        torch.testing.assert_close(got, hf(tokens[None, :8]).logits[0], rtol=0, atol=1e-4)
        with pytest.raises(IndexError):
            hidden_states(decoder, [tokens])


def test_layers_are_told_apart_to_attend(directory_of):
    decoder = load_decoder(directory_of("qwen3"), dtype=torch.float32)
    seen = []

    def attend(layer, q, k, v):
        seen.append((layer, tuple(q.shape), tuple(k.shape), tuple(v.shape)))
        return q

    with torch.no_grad():
        out = decoder(torch.tensor([1, 2, 3]), torch.tensor([0, 1, 2]), attend)
    assert seen == [(i, (3, 4, 32), (3, 2, 32), (3, 2, 32)) for i in range(2)]
    assert out.shape == (3, 64)
