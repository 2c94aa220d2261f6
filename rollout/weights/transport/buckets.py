"""Weights as a sequence of flat byte buckets, the same on both ends of a transport.

All tensors lie one after the other, each at a multiple of `ALIGNMENT`, in the manifest's order; buckets of one size cut
that line wherever they end, through tensors too. Types travel as bytes: gloo refuses some (fp8), and none
needs to be known to who passes them on.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from rollout.weights.manifest import TensorSpec, describe_layout

__all__ = ["ALIGNMENT", "BucketPlan", "Landing", "Piece"]

ALIGNMENT = 64
"""Bytes: a cache line, and a multiple of every element's size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A run of bytes of one tensor within one bucket."""

    name: str
    tensor_offset: int
    bucket_offset: int
    num_bytes: int


class BucketPlan:
    """Places of all tensors' bytes, computed only from names, shapes and types.

    Args:
        specs: tensors in the order in which they are sent; their digests are not read.
        bucket_bytes: size of every bucket but the last, a positive multiple of `ALIGNMENT`.
    """

    def __init__(self, specs: Sequence[TensorSpec], *, bucket_bytes: int) -> None:
        if bucket_bytes <= 0 or bucket_bytes % ALIGNMENT:
            raise ValueError(
                f"bucket_bytes must be a positive multiple of {ALIGNMENT}, got {bucket_bytes}"
            )
        self.bucket_bytes = bucket_bytes
        self._specs = {spec.name: spec for spec in specs}
        self._num_bytes = 0
        buckets: list[list[Piece]] = []
        for spec in specs:
            for piece in self._pieces(spec):
                if piece.bucket_offset == 0 or not buckets:
                    buckets.append([])
                buckets[-1].append(piece)
        self.buckets = tuple(map(tuple, buckets))

    @property
    def num_bytes(self) -> int:
        """Number of bytes sent in all buckets."""
        return self._num_bytes

    def size(self, bucket: int) -> int:
        """Bytes of that bucket."""
        return min(self.bucket_bytes, self._num_bytes - bucket * self.bucket_bytes)

    def pack(
        self,
        named_weights: Iterable[tuple[str, torch.Tensor]],
        buffer_of: Callable[[int], torch.Tensor],
    ) -> Iterator[torch.Tensor]:
        """Fill one bucket after the other; each tensor is held only until its last byte is copied.

        Args:
            named_weights: the planned tensors, in the same order.
            buffer_of: index of a bucket -> [bucket_bytes] uint8 to fill; called when the bucket is begun.

        Yields:
            [size(bucket)] uint8, filled.

        Raises:
            ValueError: another tensor came than was planned, or more, or fewer.
        """
        weights = iter(named_weights)
        flat = torch.empty(0, dtype=torch.uint8)
        for index, pieces in enumerate(self.buckets):
            buffer = buffer_of(index)[: self.size(index)]
            for piece in pieces:
                if piece.tensor_offset == 0:
                    flat = self._next_bytes(piece.name, weights)
                _run(buffer, piece.bucket_offset, piece).copy_(
                    _run(flat, piece.tensor_offset, piece)
                )
            yield buffer
        extra = next(weights, None)
        if extra is not None:
            raise ValueError(
                f"{len(self._specs)} tensors are planned, and more came: {extra[0]} is the first"
            )

    def _next_bytes(self, name: str, weights: Iterator[tuple[str, torch.Tensor]]) -> torch.Tensor:
        came = next(weights, None)
        if came is None:
            raise ValueError(f"{len(self._specs)} tensors are planned, and none came for {name}")
        (got,) = describe_layout(0, [came]).tensors
        planned = self._specs[name]
        if (got.name, got.shape, got.dtype) != (name, planned.shape, planned.dtype):
            raise ValueError(
                f"{name}, {planned.dtype}{list(planned.shape)}, is planned next, "
                f"got {got.name}, {got.dtype}{list(got.shape)}"
            )
        return _as_bytes(came[1].contiguous())

    def _pieces(self, spec: TensorSpec) -> Iterator[Piece]:
        """Yields the parts of the next tensor; at least one, also for an empty tensor."""
        start, num_bytes = self._num_bytes, spec.num_bytes
        # an empty tensor takes a line, so that no bucket is empty
        self._num_bytes += max(1, -(-num_bytes // ALIGNMENT)) * ALIGNMENT
        done = 0
        while True:
            bucket_offset = (start + done) % self.bucket_bytes
            size = min(num_bytes - done, self.bucket_bytes - bucket_offset)
            yield Piece(
                name=spec.name, tensor_offset=done, bucket_offset=bucket_offset, num_bytes=size
            )
            done += size
            if done == num_bytes:
                return


class Landing:
    """Destination of received bytes: directly into contiguous tensors, and into a copy first for others.

    Args:
        plan: plan of the tensors.
        targets: planned tensors by name; written by `unpack` and `finish`.
    """

    def __init__(self, plan: BucketPlan, targets: Mapping[str, torch.Tensor]) -> None:
        self._plan = plan
        self._copies = {
            name: (tensor, torch.empty_like(tensor, memory_format=torch.contiguous_format))
            for name, tensor in targets.items()
            if not tensor.is_contiguous()
        }
        contiguous = dict(targets) | {name: copy for name, (_, copy) in self._copies.items()}
        self._bytes = {name: _as_bytes(tensor) for name, tensor in contiguous.items()}

    def direct(self, bucket: int) -> torch.Tensor | None:
        """The target's own memory, where the bucket is nothing but one run of it."""
        pieces = self._plan.buckets[bucket]
        if len(pieces) > 1 or pieces[0].num_bytes != self._plan.size(bucket):
            return None  # what fills the last line is on the wire, too
        return _run(self._bytes[pieces[0].name], pieces[0].tensor_offset, pieces[0])

    def unpack(self, bucket: int, buffer: torch.Tensor) -> None:
        """Copy a bucket's bytes to where they belong."""
        for piece in self._plan.buckets[bucket]:
            target = _run(self._bytes[piece.name], piece.tensor_offset, piece)
            target.copy_(_run(buffer, piece.bucket_offset, piece))

    def finish(self) -> None:
        """Fills the tensors that are not contiguous, once every bucket has arrived."""
        for tensor, copy in self._copies.values():
            tensor.copy_(copy)


def _run(flat: torch.Tensor, offset: int, piece: Piece) -> torch.Tensor:
    return flat[offset : offset + piece.num_bytes]


def _as_bytes(contiguous: torch.Tensor) -> torch.Tensor:
    return contiguous.detach().view(-1).view(torch.uint8)
