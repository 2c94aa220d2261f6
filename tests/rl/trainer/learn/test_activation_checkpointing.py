from pathlib import Path

import pytest
import torch

from rl.algorithms.rloo import rloo_loss
from rl.trainer.config import TrainerConfig
from rl.trainer.learn.critic import Critic, ValueHead
from rollout.models.checkpoint import load_decoder
from tests.rl.trainer.training_cases import backend_of, lora, micro_batches
from tests.tiny_models import save_tiny


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("llama"), "llama", num_hidden_layers=6)


@pytest.mark.parametrize("config", [{}, {"lora": lora()}], ids=["whole", "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_log_probabilities_and_gradients_are_the_same_bits(llama, dtype, config):
    found = []
    for recomputes in (False, True):
        backend, _, _ = backend_of(llama, dtype, recomputes=recomputes, **config)
        (batch,) = micro_batches()
        logprobs = backend.logprobs(batch)[0].detach()
        backend.forward_backward([batch], rloo_loss, denominator=12.0)
        found.append([logprobs, *(m.grad for m in backend.state_dict()["masters"])])
    assert any(float(g.abs().sum()) > 0 for g in found[0][1:])
    for plain, recomputed in zip(*found, strict=True):
        assert torch.equal(plain, recomputed)


def bytes_kept(forward) -> int:
    """For the backward, in tensors that are not parameters."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward()
    assert out.requires_grad
    return sum(kept.values())


def test_the_backward_keeps_one_state_per_layer(llama):
    (batch,) = micro_batches()
    state = len(batch.token_ids_T) * 64 * 4
    kept = []
    for recomputes in (False, True):
        backend, _, _ = backend_of(llama, torch.float32, recomputes=recomputes)
        kept.append(bytes_kept(lambda backend=backend: backend.logprobs(batch)[0]))
    assert kept[1] < 8 * state  # six inputs of layers; the last norm and the head keep some more
    assert kept[0] > 6 * 10 * state


def test_a_critic_recomputes_as_well(llama):
    found = []
    for recomputes in (False, True):
        decoder = load_decoder(llama, dtype=torch.float32)
        decoder.recomputes_layers = recomputes
        critic = Critic(decoder, ValueHead(decoder), TrainerConfig(), value_clip=0.5)
        critic._head.weight.data.fill_(0.1)
        (batch,) = micro_batches()
        critic.values(batch).square().sum().backward()
        found.append([m.grad for m in critic.state_dict()["masters"]])
    for plain, recomputed in zip(*found, strict=True):
        assert torch.equal(plain, recomputed)
