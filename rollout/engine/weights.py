"""Weights of an engine: the live ones, the shadow that an update is written to, and when the two are exchanged.

`engine.on_update` decides about requests that have begun when new weights are ready:

    drain      no other request begins; those that have begun end with the old weights, then the new ones become live
    keep       new weights become live at once; keys and values stay, so next tokens read keys of several versions
    recompute  new weights become live at once; keys and values are computed again, so next tokens are exactly the new policy's

With `keep`, a request that has not drawn a token is computed again, too: this costs part of a prompt, and neither the request
nor its siblings read keys of weights that drew none of their tokens.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from rollout.config import EngineConfig, OnUpdate, StorageDtype
from rollout.engine.runner import Runner
from rollout.engine.scheduler import Scheduler
from rollout.models.checkpoint import empty_decoder
from rollout.models.decoder import Decoder
from rollout.models.int8 import int8_decoder
from rollout.models.packed_decoder import PackedDecoder
from rollout.weights.manifest import Manifest
from rollout.weights.staging import HeldWeights, ReceiverState, WeightReceiver
from rollout.weights.update import WeightUpdate

__all__ = ["EngineWeights"]


class EngineWeights:
    """Owns both sets of weights. `stage` and `verify` may run in another thread while the engine steps; everything else is
    called between two steps, except `held`, which any thread may call.

    Args:
        decoder: first live weights; with `engine.weight_dtype=int8`, a copy of them in 8 bits is live.
        config: `weight_dtype` and `on_update` are read.
        runner: owns the KV cache, which a commit clears.
        scheduler: knows the requests that have begun.
        version: policy version of the decoder.
    """

    def __init__(
        self,
        decoder: Decoder,
        config: EngineConfig,
        *,
        runner: Runner,
        scheduler: Scheduler,
        version: int,
    ) -> None:
        self._takes_int8 = config.weight_dtype is StorageDtype.int8
        self._on_update = config.on_update
        self._runner = runner
        self._scheduler = scheduler
        weight = decoder.embed_tokens
        self._spec, self._dtype, self._device = decoder.spec, weight.dtype, weight.device
        live = int8_decoder(decoder) if self._takes_int8 else decoder
        self._receiver = WeightReceiver(
            runner.packed(live), self._empty(is_int8=self._takes_int8), version=version
        )
        self._scheduler.policy_version = version
        self.is_commit_pending = False
        """Whether a commit waits for requests to end; no other request begins until then."""

    @property
    def live(self) -> PackedDecoder:
        """Weights that the next step runs; another object after every commit."""
        return self._receiver.live

    @property
    def decoder(self) -> Decoder:
        """Decoder of the live weights; another object after every commit."""
        return self.live.decoder

    @property
    def version(self) -> int:
        """Policy version of the live weights."""
        return self._receiver.version

    @property
    def has_staged(self) -> bool:
        """Whether an update waits to be verified, committed or rolled back."""
        return self._receiver.state is not ReceiverState.IDLE

    def held(self) -> HeldWeights:
        """Returns version and digest of the live weights, as they were verified."""
        return self._receiver.held()

    def digest(self) -> str:
        """Computes one digest over the live weights."""
        return self._receiver.digest()

    def stage(self, update: WeightUpdate) -> None:
        """Copies an update into the shadow weights.

        Raises:
            ValueError: names, shapes or types differ from the shadow's, or the version is not newer.
        """
        self._choose_shadow(update.manifest)
        self._receiver.stage(update)

    @contextmanager
    def staging(self, manifest: Manifest) -> Iterator[Mapping[str, torch.Tensor]]:
        """Gives a transport the shadow tensors to fill before the block ends; see `WeightReceiver.staging`."""
        self._choose_shadow(manifest)
        with self._receiver.staging(manifest) as shadows:
            yield shadows

    def verify(self, manifest: Manifest | None = None) -> None:
        """Compares the staged bytes with the digests of the manifest, and packs the weights, so that the first step after the
        commit costs no more than any other.

        Args:
            manifest: manifest with digests, if staging began with one that has none.

        Raises:
            RuntimeError: a digest differs; the update is dropped.
        """
        self._receiver.verify(manifest)

    def commit(self) -> None:
        """Makes the verified weights live now.

        Raises:
            RuntimeError: nothing is verified; or requests have begun, and `engine.on_update` is `drain`.
        """
        if not self._is_ready:
            raise RuntimeError(
                f"commit needs a drained engine when engine.on_update is drain; {self._scheduler.num_begun} "
                "requests have begun; commit_when_ready waits for them"
            )
        self._receiver.commit()
        self._scheduler.begin_version(
            self._receiver.version, keeps_kv=self._on_update is OnUpdate.keep
        )
        self._runner.clear_blocks(kept_blocks=self._scheduler.blocks_in_use())
        self._stop_waiting()

    def commit_when_ready(self) -> None:
        """Commits now if `engine.on_update` allows, else when the last request that has begun has ended.

        Raises:
            RuntimeError: nothing is verified.
        """
        self._receiver.require_verified()
        self.is_commit_pending = self._scheduler.is_draining = True
        self.advance()

    def advance(self) -> None:
        """Commits if a commit is pending and no request is in its way; the engine calls it before each step."""
        if self.is_commit_pending and self._is_ready:
            self.commit()

    def rollback(self) -> None:
        """Drops the staged update and a pending commit; the old version stays live.

        Raises:
            RuntimeError: nothing is staged.
        """
        self._receiver.rollback()
        self._stop_waiting()

    @property
    def _is_ready(self) -> bool:
        return self._on_update is not OnUpdate.drain or not self._scheduler.num_begun

    def _stop_waiting(self) -> None:
        self.is_commit_pending = self._scheduler.is_draining = False

    def _choose_shadow(self, manifest: Manifest) -> None:
        """Replaces the shadow if an engine in 8 bits gets plain weights, or int8 weights again after those."""
        if self._takes_int8 and self._receiver.shadow.decoder.is_int8 != manifest.is_int8:
            self._receiver.replace_shadow(self._empty(is_int8=manifest.is_int8))

    def _empty(self, *, is_int8: bool) -> PackedDecoder:
        decoder = empty_decoder(self._spec, dtype=self._dtype, device=self._device, is_int8=is_int8)
        return self._runner.packed(decoder)
