"""Receiving end of a weight update: weights become live only after their digests were verified."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum
from threading import Lock
from typing import Generic, Protocol, TypeVar

import torch

from rollout.weights.layout import check_same_layout, layout_of, layout_of_manifest, some_of
from rollout.weights.manifest import Manifest, combine_digests, digest_tensor
from rollout.weights.update import WeightUpdate

__all__ = [
    "HeldWeights",
    "ReceiverState",
    "StagingArea",
    "WeightReceiver",
    "WeightSet",
]


class ReceiverState(Enum):
    IDLE = "idle"
    STAGING = "staging"
    STAGED = "staged"
    VERIFIED = "verified"


_ALLOWED = {
    ReceiverState.IDLE: "stage",
    ReceiverState.STAGING: "none before it ends",
    ReceiverState.STAGED: "verify or rollback",
    ReceiverState.VERIFIED: "commit or rollback",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldWeights:
    """Version and digest of live weights."""

    version: int
    digest: str


class StagingArea(Protocol):
    """Place where a transport puts an update."""

    def staging(self, manifest: Manifest) -> AbstractContextManager[Mapping[str, torch.Tensor]]:
        """Gives the tensors to fill before the block ends."""
        ...


class WeightSet(Protocol):
    """One set of weights, with the packed forms that must be ready before its use."""

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Weights by Hugging Face's names; may be views into larger fused parameters."""
        ...

    def prepare(self) -> None:
        """Makes verified weights ready for use."""


W = TypeVar("W", bound=WeightSet)


class WeightReceiver(Generic[W]):
    """Takes updates into a shadow set of weights, and exchanges it with the live set between two engine steps.

            staging            (its end)           verify               commit
      IDLE ─────────> STAGING ───────────> STAGED ──────────> VERIFIED ──────────> IDLE, at the new version
       ^                 │                    │                   │
       └─────────────────┴────────────────────┴───────────────────┘
         staging that raises, a verify that fails, a rollback: the old version stays live

    `staging` and `verify` touch only the shadow and may run in a thread beside the engine's; `commit` is called
    between two steps. `held` answers from any thread.

    Args:
        live: weights in use.
        shadow: weights of the same names, shapes and types, which an update is written to.
        version: version of the live weights.
    """

    def __init__(self, live: W, shadow: W, *, version: int) -> None:
        check_same_layout(layout_of(live.tensors), layout_of(shadow.tensors), of="the shadows")
        self._live = live
        self._shadow = shadow
        self._version = version
        self._state = ReceiverState.IDLE
        self._staged: Manifest | None = None
        self._held: HeldWeights | None = None
        self._lock = Lock()  # guards which set is live

    @property
    def live(self) -> W:
        """Weights in use; another object after every commit."""
        return self._live

    @property
    def shadow(self) -> W:
        """Weights that the next update is written to."""
        return self._shadow

    @property
    def version(self) -> int:
        """Version of the live weights."""
        return self._version

    @property
    def state(self) -> ReceiverState:
        return self._state

    def digest(self) -> str:
        """Computes one digest over the live weights; it equals `Manifest.digest` of their update."""
        return combine_digests({name: digest_tensor(t) for name, t in self._live.tensors.items()})

    def held(self) -> HeldWeights:
        """Returns version and digest of the live weights; the digest is the one that was verified."""
        with self._lock:
            if self._held is None:  # the first weights, which no update brought
                self._held = HeldWeights(version=self._version, digest=self.digest())
            return self._held

    def replace_shadow(self, shadow: W) -> None:
        """Takes the next update into another set; its weights may have other types than the live ones.

        Raises:
            RuntimeError: an update is staged.
        """
        self._require(ReceiverState.IDLE, "replace_shadow")
        self._shadow = shadow

    def require_verified(self) -> None:
        """Refuses a commit for which nothing is verified.

        Raises:
            RuntimeError: nothing is verified.
        """
        self._require(ReceiverState.VERIFIED, "commit")

    def stage(self, update: WeightUpdate) -> None:
        """Copies an update into the shadow.

        Raises:
            ValueError: other names, shapes or dtypes than the shadows', or no newer version.
        """
        with self.staging(update.manifest) as shadows:
            check_same_layout(layout_of(shadows), layout_of(update.tensors), of="the update")
            for name, tensor in update.tensors.items():
                shadows[name].copy_(tensor.detach())

    @contextmanager
    def staging(self, manifest: Manifest) -> Iterator[Mapping[str, torch.Tensor]]:
        """Gives the shadow tensors, to be filled before the block ends, in any order and in any pieces.

        Args:
            manifest: manifest of the update; its digests may still be unknown.

        Raises:
            ValueError: other names, shapes or dtypes than the shadows', or no newer version.
        """
        self._require(ReceiverState.IDLE, "stage")
        if manifest.version <= self._version:
            raise ValueError(
                f"a weight update must be newer than version {self._version}, got {manifest.version}"
            )
        check_same_layout(
            layout_of(self._shadow.tensors), layout_of_manifest(manifest), of="the manifest"
        )
        self._state = ReceiverState.STAGING
        try:
            yield {name: shadow.detach() for name, shadow in self._shadow.tensors.items()}
        except BaseException:
            self._drop_staged()
            raise
        self._staged = manifest
        self._state = ReceiverState.STAGED

    def verify(self, manifest: Manifest | None = None) -> None:
        """Compares the digests of the staged weights with those of the manifest, then prepares the weights.

        After an error of a digest or of the preparation the receiver is IDLE again, and the old version stays live.

        Args:
            manifest: manifest with digests, if staging began with one that has none.

        Raises:
            ValueError: there are no digests, or the manifest is of another update; the weights stay staged.
            RuntimeError: a digest differs.
        """
        self._require(ReceiverState.STAGED, "verify")
        manifest = self._with_digests(manifest)
        version, specs = manifest.version, manifest.tensors
        bad = [
            spec.name
            for spec in specs
            if digest_tensor(self._shadow.tensors[spec.name]) != spec.digest
        ]
        if bad:
            self.rollback()
            raise RuntimeError(
                f"weights of version {version} differ from their manifest in {len(bad)} of {len(specs)} "
                f"tensors: {some_of(bad)}; version {self._version} stays live"
            )
        try:
            self._shadow.prepare()
        except BaseException:
            self.rollback()
            raise
        self._staged = manifest
        self._state = ReceiverState.VERIFIED

    def commit(self) -> None:
        """Exchanges live and shadow weights. Call it between two engine steps.

        Raises:
            RuntimeError: nothing is verified.
        """
        self.require_verified()
        assert self._staged is not None, "VERIFIED without a manifest"
        held = HeldWeights(version=self._staged.version, digest=self._staged.digest)
        with self._lock:
            self._live, self._shadow = self._shadow, self._live
            self._version = held.version
            self._held = held
        self._drop_staged()

    def rollback(self) -> None:
        """Drops the staged weights; the old version stays live.

        Raises:
            RuntimeError: nothing is staged.
        """
        if self._state in (ReceiverState.IDLE, ReceiverState.STAGING):
            raise self._out_of_order("rollback")
        self._drop_staged()

    def _with_digests(self, manifest: Manifest | None) -> Manifest:
        staged = self._staged
        assert staged is not None, "STAGED without a manifest"
        if manifest is None:
            manifest = staged
        elif manifest.version != staged.version or layout_of_manifest(
            manifest
        ) != layout_of_manifest(staged):
            raise ValueError(
                f"verify must be given the manifest of what was staged (version {staged.version}), "
                f"got one of version {manifest.version} with {len(manifest.tensors)} tensors"
            )
        if not manifest.has_digests:
            raise ValueError(
                f"version {staged.version} was staged without digests; give verify the manifest that has them"
            )
        return manifest

    def _drop_staged(self) -> None:
        self._staged = None
        self._state = ReceiverState.IDLE

    def _require(self, state: ReceiverState, call: str) -> None:
        if self._state is not state:
            raise self._out_of_order(call)

    def _out_of_order(self, call: str) -> RuntimeError:
        return RuntimeError(
            f"{call} is not allowed while the weight receiver is {self._state.name} "
            f"(version {self._version} live); allowed now: {_ALLOWED[self._state]}"
        )
