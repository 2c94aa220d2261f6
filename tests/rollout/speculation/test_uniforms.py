import torch

from kernels.philox import philox_uniform
from rollout.core import SampleKey
from rollout.speculation.drafters.uniforms import Uniforms, look_ahead, uniforms
from tests.rollout.speculation.requests import make_state


def truth(key, position):
    keys_13 = torch.tensor([[key.seed, key.group_id, key.sample_index]])
    return philox_uniform(keys_13, torch.tensor([position])).item()


def test_spans_of_several_keys_are_those_of_each_key_and_position():
    one, other = SampleKey(-3, 2**40, 1), SampleKey(5, 0, 7)
    got = uniforms([(one, 100, 2), (other, 0, 0), (other, 3, 1)])
    assert got == [[truth(one, 100), truth(one, 101)], [], [truth(other, 3)]]
    assert uniforms([]) == []


def test_requests_have_them_behind_their_prompts_as_far_as_one_looks_and_keep_them():
    states = [make_state(f"{i}", [1] * (3 + i), sample_index=i) for i in range(3)]
    known = [Uniforms(state.request.key, first=3 + i) for i, state in enumerate(states)]
    look_ahead(known[:2], ends=[5, 300])
    look_ahead(known, ends=[700, 5, 6])
    for i, last in enumerate((699, 299, 5)):
        for position in (3 + i, 4 + i, last):
            assert known[i].at(position) == truth(states[i].request.key, position)


def test_a_greedy_request_has_none():
    request = make_state("a", [1], temperature=0.0).request
    greedy = Uniforms(request.drawn_with, first=1)
    look_ahead([greedy], ends=[100])
    assert greedy.at(5) is None
