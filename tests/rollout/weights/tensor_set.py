"""A set of weights that is nothing but tensors."""

from collections.abc import Callable, Mapping

import torch


class TensorSet:
    def __init__(
        self, tensors: Mapping[str, torch.Tensor], prepare: Callable[[], None] = lambda: None
    ) -> None:
        self.tensors = tensors
        self._prepare = prepare

    def prepare(self) -> None:
        self._prepare()
