import torch

from kernels.philox import philox_uniform
from rollout.engine.core import SampleKey
from rollout.speculation.drafters.uniforms import Uniforms, uniforms
from tests.rollout.speculation.requests import make_state


def truth(key, position):
    keys_13 = torch.tensor([[key.seed, key.group_id, key.sample_index]])
    return philox_uniform(keys_13, torch.tensor([position])).item()


def test_spans_of_several_keys_are_those_of_each_key_and_position():
    one, other = SampleKey(-3, 2**40, 1), SampleKey(5, 0, 7)
    got = uniforms([(one, 100, 2), (other, 0, 0), (other, 3, 1)])
    assert got == [[truth(one, 100), truth(one, 101)], [], [truth(other, 3)]]
    assert uniforms([]) == []


def test_a_request_has_them_behind_its_prompt_however_far_one_looks():
    request = make_state("a", [1, 2, 3], sample_index=4).request
    known = Uniforms(request)
    assert [known.at(p) for p in (3, 4, 700, 258)] == [
        truth(request.key, p) for p in (3, 4, 700, 258)
    ]


def test_a_greedy_request_has_none():
    assert Uniforms(make_state("a", [1], temperature=0.0).request).at(5) is None
