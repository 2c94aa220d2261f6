import torch

from kernels.gpu.vocabulary.philox import philox_uniform_triton
from kernels.philox import philox_uniform


def test_uniforms_are_the_bits_of_the_op(device):
    # 130 rows: one past a tile; words of 32 bits and more in every place, and negative seeds
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(-(2**62), 2**62, (130, 3), generator=generator)
    keys[:, 2] &= 2**32 - 1
    positions = torch.randint(0, 2**32, (130,), generator=generator)
    keys[:3], positions[:3] = (
        torch.tensor([[0, 0, 0], [1, 0, 0], [0, 2**32, 1]]),
        torch.tensor([0, 0, 1]),
    )
    got = philox_uniform_triton(keys.to(device), positions.to(device)).cpu()
    assert torch.equal(got, philox_uniform(keys, positions))
