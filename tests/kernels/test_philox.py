import pytest
import torch

import kernels.philox
from kernels.philox import philox_4x32, philox_uniform

# kat_vectors of Random123: (counter, key, words)
KNOWN_ANSWERS = {
    "zeros": ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "ones": ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "pi": (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
}
BASE = (11, 22, 3, 44)  # seed, group_id, sample_index, position


def words(text):
    return torch.tensor([int(word, 16) for word in text.split()])


def uniform(seed, group_id, sample_index, position):
    key = torch.tensor([[seed, group_id, sample_index]])
    return philox_uniform(key, torch.tensor([position])).item()


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS.values(), ids=KNOWN_ANSWERS)
def test_the_known_answers_of_random123(counter, key, expected):
    got = philox_4x32(words(counter)[:, None], words(key)[:, None])
    assert got.squeeze(1).tolist() == words(expected).tolist()


def test_known_answers_do_not_depend_on_their_neighbours():
    counters, keys, expected = (
        torch.stack([words(known[i]) for known in KNOWN_ANSWERS.values()], dim=1) for i in range(3)
    )
    assert torch.equal(philox_4x32(counters, keys), expected)


def test_where_each_part_of_the_key_goes_is_pinned():
    # the "pi" answer: moving a part elsewhere would change every run's tokens
    got = uniform(0x299F31D0A4093822, 0x0370734413198A2E, 0x85A308D3, 0x243F6A88)
    assert got == (0xD16CFE09 >> 8) * 2.0**-24


@pytest.mark.parametrize(
    "other",
    [
        (12, 22, 3, 44),
        (11 + 2**32, 22, 3, 44),
        (11, 23, 3, 44),
        (11, 22 + 2**32, 3, 44),
        (11, 22, 4, 44),
        (11, 22, 3, 45),
        (22, 11, 3, 44),
        (11, 22, 44, 3),
        (-11, 22, 3, 44),
    ],
)
def test_every_part_of_the_key_counts(other):
    assert uniform(*BASE) == uniform(*BASE)
    assert uniform(*other) != uniform(*BASE)


def test_a_row_does_not_depend_on_its_batch():
    keys = torch.tensor([[11, 22, 3], [11, 22, 4], [2**62, 2**40, 5], [11, 22, 3]])
    positions = torch.tensor([44, 44, 2**31, 45])
    got = philox_uniform(keys, positions)
    assert got.dtype == torch.float32
    alone = [philox_uniform(keys[i : i + 1], positions[i : i + 1]) for i in range(4)]
    assert torch.equal(got, torch.cat(alone))
    assert len(set(got.tolist())) == 4


@pytest.mark.parametrize(("word", "expected"), [(0, 0.0), (0xFF, 0.0), (0xFFFFFFFF, 1 - 2.0**-24)])
def test_the_range_is_half_open(monkeypatch, word, expected):
    monkeypatch.setattr(
        kernels.philox, "philox_4x32", lambda counter, key: torch.full_like(counter, word)
    )
    assert uniform(*BASE) == expected


def test_consecutive_positions_fill_the_interval_evenly():
    positions = torch.arange(20_000)
    got = philox_uniform(torch.tensor([BASE[:3]]).expand(20_000, 3), positions)
    counts = torch.histc(got, 10, 0, 1)
    sigma = (20_000 * 0.1 * 0.9) ** 0.5
    assert (counts - 2000).abs().max() < 4 * sigma
    centred = got - 0.5
    assert (centred[1:] * centred[:-1]).mean().abs() < 4 / 12 / 20_000**0.5
