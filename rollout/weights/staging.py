"""The receiving end of a weight update: nothing unverified is ever in force."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from threading import Lock

import torch

from rollout.weights.manifest import Manifest, combine_digests, digest_tensor, dtype_name
from rollout.weights.update import WeightUpdate


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
    """Which weights are in force somewhere."""

    version: int
    digest: str


class WeightReceiver:
    """Takes updates into shadow tensors and swaps them in between two engine steps.

            staging            (its end)           verify               commit
      IDLE ─────────> STAGING ───────────> STAGED ──────────> VERIFIED ──────────> IDLE, at the new version
       ^                 │                    │                   │
       └─────────────────┴────────────────────┴───────────────────┘
         staging that raises, a verify that fails, a rollback: the old version stays in force

    `staging` and `verify` touch nothing but the shadows and may run in a thread beside the engine's; `commit` belongs
    between two steps, and leaves the step after it nothing to do. `held` answers from any thread.

    Args:
        targets: the live weights by HF name; may be views into larger fused parameters.
        shadows: tensors of the same names, shapes and dtypes, which an update is written to.
        version: of the live weights.
        swap: exchanges live and shadow storage. If it raises it must have changed nothing.
        prepare: whatever else these weights need before they can be used; called by `verify`, where the digests are right.
    """

    def __init__(
        self,
        targets: Mapping[str, torch.Tensor],
        shadows: Mapping[str, torch.Tensor],
        *,
        version: int,
        swap: Callable[[], None],
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        _check_same_layout(_layout(targets), _layout(shadows), of="the shadows")
        self._targets = targets
        self._shadows = shadows
        self._version = version
        self._swap = swap
        self._prepare = prepare
        self._state = ReceiverState.IDLE
        self._staged: Manifest | None = None
        self._held: HeldWeights | None = None
        self._lock = Lock()  # over what is live

    @property
    def version(self) -> int:
        """Of the weights in force."""
        return self._version

    @property
    def state(self) -> ReceiverState:
        return self._state

    def digest(self) -> str:
        """One digest over the weights in force, read now; equals `Manifest.digest` of their update."""
        return combine_digests({name: digest_tensor(t) for name, t in self._targets.items()})

    def held(self) -> HeldWeights:
        """Version and digest of the weights in force; the digest is that which they were verified by."""
        with self._lock:
            if self._held is None:  # weights the receiver was made with
                self._held = HeldWeights(version=self._version, digest=self.digest())
            return self._held

    def replace_shadows(self, shadows: Mapping[str, torch.Tensor]) -> None:
        """Take the next update into other tensors: its weights may be of other types than those in force."""
        self._require(ReceiverState.IDLE, "replace_shadows")
        self._shadows = shadows

    def require_verified(self) -> None:
        """
        Raises:
            RuntimeError: there is nothing that could be committed.
        """
        self._require(ReceiverState.VERIFIED, "commit")

    def stage(self, update: WeightUpdate) -> None:
        """Copy `update` into the shadows.

        Raises:
            ValueError: other names, shapes or dtypes than the shadows', or no newer version.
        """
        with self.staging(update.manifest) as shadows:
            _check_same_layout(_layout(shadows), _layout(update.tensors), of="the update")
            for name, tensor in update.tensors.items():
                shadows[name].copy_(tensor.detach())

    @contextmanager
    def staging(self, manifest: Manifest) -> Iterator[Mapping[str, torch.Tensor]]:
        """The shadows, to be filled with what `manifest` announces before the block ends; any order, any pieces.

        Args:
            manifest: of the update; its digests may still be unknown.

        Raises:
            ValueError: other names, shapes or dtypes than the shadows', or no newer version.
        """
        self._require(ReceiverState.IDLE, "stage")
        if manifest.version <= self._version:
            raise ValueError(
                f"a weight update must be newer than version {self._version}, got {manifest.version}"
            )
        _check_same_layout(_layout(self._shadows), _layout_of(manifest), of="the manifest")
        self._state = ReceiverState.STAGING
        try:
            yield {name: shadow.detach() for name, shadow in self._shadows.items()}
        except BaseException:
            self._drop_staged()
            raise
        self._staged = manifest
        self._state = ReceiverState.STAGED

    def verify(self, manifest: Manifest | None = None) -> None:
        """Compare the digests of what was staged with the manifest's, and prepare it.

        Args:
            manifest: with digests, of what was staged by one without.

        Raises:
            ValueError: no digests, or a manifest of something else than what was staged; it stays staged.
            RuntimeError: some differ; the receiver is IDLE again and the old version in force. So it is after any error of
                the preparation.
        """
        self._require(ReceiverState.STAGED, "verify")
        manifest = self._with_digests(manifest)
        version, specs = manifest.version, manifest.tensors
        bad = [
            spec.name for spec in specs if digest_tensor(self._shadows[spec.name]) != spec.digest
        ]
        if bad:
            self.rollback()
            raise RuntimeError(
                f"weights of version {version} differ from their manifest in {len(bad)} of {len(specs)} "
                f"tensors: {_some(bad)}; version {self._version} stays in force"
            )
        try:
            self._prepare()
        except BaseException:
            self.rollback()
            raise
        self._staged = manifest
        self._state = ReceiverState.VERIFIED

    def commit(self) -> None:
        """Put the verified weights in force. Call it between two engine steps."""
        self.require_verified()
        assert self._staged is not None, "VERIFIED without a manifest"
        held = HeldWeights(version=self._staged.version, digest=self._staged.digest)
        with self._lock:
            self._swap()
            self._targets, self._shadows = self._shadows, self._targets
            self._version = held.version
            self._held = held
        self._drop_staged()

    def rollback(self) -> None:
        """Drop what was staged; the old version stays in force."""
        if self._state in (ReceiverState.IDLE, ReceiverState.STAGING):
            raise self._out_of_order("rollback")
        self._drop_staged()

    def _with_digests(self, manifest: Manifest | None) -> Manifest:
        staged = self._staged
        assert staged is not None, "STAGED without a manifest"
        if manifest is None:
            manifest = staged
        elif manifest.version != staged.version or _layout_of(manifest) != _layout_of(staged):
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
            f"(version {self._version} in force); allowed now: {_ALLOWED[self._state]}"
        )


_Layout = Mapping[str, tuple[tuple[int, ...], str]]


def _layout(tensors: Mapping[str, torch.Tensor]) -> _Layout:
    return {name: (tuple(t.shape), dtype_name(t.dtype)) for name, t in tensors.items()}


def _layout_of(manifest: Manifest) -> _Layout:
    return {spec.name: (spec.shape, spec.dtype) for spec in manifest.tensors}


def _check_same_layout(expected: _Layout, got: _Layout, *, of: str) -> None:
    """Raise a ValueError that names what is missing, extra or of another shape or dtype in `got`."""
    missing = [name for name in expected if name not in got]
    extra = [name for name in got if name not in expected]
    mismatched = [
        f"{name} is {_describe(*got[name])}, not {_describe(*layout)}"
        for name, layout in expected.items()
        if name in got and got[name] != layout
    ]
    complaints = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (("missing", missing), ("extra", extra), ("mismatched", mismatched))
        if names
    ]
    if complaints:
        raise ValueError(
            f"{of} must match the {len(expected)} live tensors, got " + "; ".join(complaints)
        )


def _describe(shape: tuple[int, ...], dtype: str) -> str:
    return f"{dtype}{list(shape)}"


def _some(names: Iterable[str], *, at_most: int = 3) -> str:
    names = list(names)
    rest = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {rest} more" if rest > 0 else "")
