"""The engine's loop: schedule -> run -> sample -> postprocess."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kernels.numerics import is_thread_invariant
from rollout.config import (
    Dtype,
    EngineConfig,
    ModelConfig,
    StorageDtype,
)
from rollout.core import (
    Batch,
    Completion,
    FinishReason,
    Request,
    RequestState,
    SamplingParams,
    Status,
)
from rollout.engine.block_manager import BlockManager
from rollout.engine.committer import Committer
from rollout.engine.costs import measure_costs
from rollout.engine.generate import generate
from rollout.engine.runner import Runner, bytes_per_block
from rollout.engine.scheduler import Scheduler
from rollout.engine.thread_policy import ThreadPolicy
from rollout.engine.verification import draft_limits, draw, keep
from rollout.load import load_model
from rollout.models.checkpoint import empty_decoder, torch_dtype
from rollout.models.decoder import Decoder
from rollout.models.int8 import int8_decoder
from rollout.models.sources import resolve_model
from rollout.speculation.drafters.make import make_drafters
from rollout.speculation.speculator import Speculator
from rollout.text.prompts import Prompt
from rollout.text.stops import ends_with_stop, text_of
from rollout.weights.manifest import Manifest
from rollout.weights.staging import HeldWeights, ReceiverState, WeightReceiver
from rollout.weights.update import WeightUpdate

__all__ = ["Engine", "EngineStats"]


@dataclass(slots=True)
class EngineStats:
    """Counts since the engine was made."""

    num_steps: int = 0
    num_request_steps: int = 0  # requests of a batch, summed over steps
    num_computed_tokens: int = 0  # prefilled and decoded
    num_sampled_tokens: int = 0
    num_preemptions: int = 0
    num_prefix_hit_tokens: int = 0


class Engine:
    """Continuous batching over a paged KV cache, on one device, in the caller's thread.

    `generate` is a wrapper; beneath it are `add_request`, `step` and `abort`. Weights are replaced by
    `stage`, `verify` and `commit`, between two steps; what becomes of requests in flight is `config.on_update`'s to say.

    Args:
        decoder: the model; the engine runs it, or a copy in 8 bits, and at a commit replaces it.
        tokenizer: of the same model.
        config: limits and sizes.
        policy_version: of the decoder's weights.
    """

    def __init__(
        self, decoder: Decoder, tokenizer: Any, config: EngineConfig, *, policy_version: int = 0
    ) -> None:
        self.tokenizer = tokenizer
        self.config = config
        is_int8 = config.weight_dtype is StorageDtype.int8
        self._decoder = int8_decoder(decoder) if is_int8 else decoder
        self._shadow = self._empty_decoder(is_int8=is_int8)
        spec = decoder.spec
        weight = decoder.embed_tokens
        has_int8_kv = config.kv_dtype is StorageDtype.int8
        block_bytes = bytes_per_block(
            spec, block_size=config.block_size, dtype=weight.dtype, is_int8=has_int8_kv
        )
        num_blocks = int(config.kv_cache_gb * 1e9 // block_bytes)
        if num_blocks == 0:
            raise ValueError(
                f"engine.kv_cache_gb must hold at least one block of {block_bytes / 1e9:.4f} GB, "
                f"got {config.kv_cache_gb}"
            )
        self.max_context_tokens = min(config.max_context_tokens, spec.max_positions)
        self._blocks = BlockManager(
            num_blocks=num_blocks, block_size=config.block_size, prefix_cache=config.prefix_cache
        )
        self._scheduler = Scheduler(
            self._blocks,
            max_requests=config.max_requests,
            max_tokens_per_step=config.max_tokens_per_step,
        )
        self._scheduler.policy_version = policy_version
        self._runner = Runner(
            spec,
            num_blocks=num_blocks,
            block_size=config.block_size,
            dtype=weight.dtype,
            device=weight.device,
            is_int8=has_int8_kv,
        )
        self._receiver = WeightReceiver(
            dict(self._decoder.hf_tensors()),
            dict(self._shadow.hf_tensors()),
            version=policy_version,
            swap=self._swap_decoders,
            prepare=lambda: self._runner.prepare(self._shadow),
        )
        self._committer = Committer(self._receiver, self._scheduler, self._runner, config.on_update)
        is_free = config.yield_threads and is_thread_invariant(weight.dtype, weight.device)
        self._threads = ThreadPolicy() if is_free else contextlib.nullcontext()
        self.speculator = self._build_speculator()
        self._states: dict[str, RequestState] = {}
        self._answered: dict[str, Completion] = {}  # rejected or aborted, until the next step
        self._stats = EngineStats()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: str = "auto",
        device: str = "cpu",
        config: EngineConfig | None = None,
    ) -> "Engine":
        """An engine over a Hugging Face directory or hub id.

        Args:
            path: with config.json, safetensors files and a tokenizer.
            dtype: "auto", "bfloat16", "float32" or "float64"; auto is bfloat16 where the device has it.
            device: where it runs.
            config: limits and sizes; the defaults of `rollout.config.EngineConfig`.
        """
        model = ModelConfig(path=str(path), dtype=Dtype(dtype))
        return cls.from_config(model, config or EngineConfig(), device=device)

    @classmethod
    def from_config(
        cls, model: ModelConfig, config: EngineConfig, *, device: str = "cpu"
    ) -> "Engine":
        """An engine over whatever model a config names."""
        directory = resolve_model(model)
        dtype = torch_dtype(model.dtype, device)
        loaded = load_model(directory, dtype=dtype, device=device, model=model)
        return cls(loaded.decoder, loaded.tokenizer, config)

    @property
    def policy_version(self) -> int:
        return self._receiver.version

    @property
    def decoder(self) -> Decoder:
        """The live weights; another object after every commit."""
        return self._decoder

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` has anything to do: requests, or a commit that waited for them."""
        return bool(self._states or self._answered or self.is_commit_pending)

    @property
    def num_running(self) -> int:
        return self._scheduler.num_running

    @property
    def num_blocks(self) -> int:
        """Of the KV cache."""
        return self._blocks.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Those that can be had by forgetting finished prompts among them."""
        return self._blocks.num_available

    @property
    def has_staged(self) -> bool:
        """Whether an update waits to be verified, committed or rolled back."""
        return self._receiver.state is not ReceiverState.IDLE

    @property
    def stats(self) -> EngineStats:
        self._stats.num_preemptions = self._scheduler.num_preemptions
        self._stats.num_prefix_hit_tokens = self._scheduler.num_prefix_hit_tokens
        return self._stats

    @property
    def layer_seconds(self) -> Mapping[str, float]:
        """By part, what the layers took since the weights in force came; empty where they run op by op."""
        return self._runner.layer_seconds

    def generate(
        self,
        prompts: Sequence[Prompt] | Prompt,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[list[Completion]]:
        """`params.n` completions per prompt, in the order of the prompts; sample i of prompt g is drawn with
        `SampleKey(params.seed, g, i)`.

        An exception or Ctrl-C ends the call's requests, and the engine takes the next call.

        Args:
            prompts: a list of prompts, each text, token ids (a list, tensor or array), or chat messages. A single prompt is
                taken as a list of one.
            params: one for all, or one per prompt.

        Raises:
            ValueError: an empty prompt; what is no prompt; not as many params as prompts.
            RuntimeError: requests are unfinished.
        """
        if self.has_unfinished:
            unfinished = len(self._states) + len(self._answered)
            raise RuntimeError(
                f"generate needs an idle engine; {unfinished} requests are unfinished"
            )
        return generate(self, prompts, params)

    def add_request(self, request: Request) -> None:
        """Queue a request. One that can never fit is answered by the next `step` as rejected.

        Raises:
            ValueError: the id is in use.
        """
        request_id = request.request_id
        if request_id in self._states or request_id in self._answered:
            raise ValueError(f"request_id must be new, got {request_id!r}, which is unfinished")
        reason = self._why_impossible(request)
        if reason:
            self._answered[request_id] = Completion(
                request_id=request_id,
                token_ids=[],
                logprobs=[],
                policy_versions=[],
                finish_reason=FinishReason.REJECTED,
                message=reason,
            )
            return
        state = RequestState.of(request)
        self._states[request_id] = state
        self._scheduler.add(state)

    def abort(self, request_id: str) -> None:
        """End a request now; the next `step` answers it with what it has. Unknown ids are finished ones."""
        state = self._states.get(request_id)
        if state is not None:
            self._answered[request_id] = self._finish(state, FinishReason.ABORTED)

    def forget(self, request_id: str) -> None:
        """End a request now, without an answer. Unknown ids are finished ones."""
        self.abort(request_id)
        self._answered.pop(request_id, None)

    def step(self) -> list[Completion]:
        """Compute one batch; returns the requests that finished."""
        with self._threads:
            return self._step()

    def _step(self) -> list[Completion]:
        self._committer.advance()  # before anything that an error could lose
        finished, self._answered = list(self._answered.values()), {}
        batch = self._scheduler.schedule()
        if batch is not None:
            if self.speculator is not None:
                limits = draft_limits(batch, max_context_tokens=self.max_context_tokens)
                drafts = self.speculator.plan(batch, limits)
                batch = self._scheduler.with_drafts(batch, drafts)
                self.speculator.begin(batch)
            logits_RV = self._runner.run(self._decoder, batch)
            finished += self._postprocess(batch, logits_RV)
            self._stats.num_steps += 1
            self._stats.num_request_steps += len(batch.chunks)
            self._stats.num_computed_tokens += sum(chunk.num_rows for chunk in batch.chunks)
        if not self._states:
            self.check_integrity()
        return finished

    def stage(self, update: WeightUpdate) -> None:
        """Copy new weights beside the live ones; see `rollout.weights.staging`."""
        self.receiver_for(update.manifest).stage(update)

    def receiver_for(self, manifest: Manifest) -> WeightReceiver:
        """Where a transport stages what `manifest` announces, beside the live weights and while the engine steps.

        With `engine.weight_dtype=int8` plain weights are taken too: from their commit on the engine is a plain one.
        """
        takes_both = self.config.weight_dtype is StorageDtype.int8
        if takes_both and self._shadow.is_int8 != manifest.is_int8:
            shadow = self._empty_decoder(is_int8=manifest.is_int8)
            self._receiver.replace_shadows(dict(shadow.hf_tensors()))
            self._shadow = shadow
        return self._receiver

    def verify(self, manifest: Manifest | None = None) -> None:
        """Compare the staged bytes with the manifest's digests, and lay them out for the kernels, so that after the commit a
        step costs what it costs before; `manifest` has the digests where staging began without."""
        self._receiver.verify(manifest)

    def commit(self) -> None:
        """Put the verified weights in force now; see `rollout.engine.committer`.

        Raises:
            RuntimeError: nothing is verified; or requests have begun that `config.on_update`, `drain`, lets end first.
        """
        self._committer.commit()

    def commit_when_ready(self) -> None:
        """Put them in force as soon as `config.on_update` allows: now, or at the `step` after that which ends what is in the way.

        Raises:
            RuntimeError: nothing is verified.
        """
        self._committer.commit_when_ready()

    @property
    def is_commit_pending(self) -> bool:
        """Whether a commit waits for requests to end; no other one begins until then."""
        return self._committer.is_pending

    def rollback(self) -> None:
        """Drop staged weights, whatever waits for them; the old version stays in force."""
        self._committer.rollback()

    def held_weights(self) -> HeldWeights:
        """Version and digest of the weights in force, as they were verified; any thread may ask."""
        return self._receiver.held()

    def weights_digest(self) -> str:
        """One digest over the live weights, read now."""
        return self._receiver.digest()

    def clear_prefix_cache(self) -> None:
        """Forget finished prompts, so that the next ones are computed anew."""
        self._blocks.forget()

    def check_integrity(self) -> None:
        """Recount every block and request.

        Raises:
            RuntimeError: the books do not agree.
        """
        self._scheduler.check_integrity()
        if self.speculator is not None:
            self.speculator.check_integrity()
        if not self._states and self._blocks.num_available != self._blocks.num_blocks:
            raise RuntimeError(
                f"idle, but only {self._blocks.num_available} of {self._blocks.num_blocks} blocks are free"
            )

    def _why_impossible(self, request: Request) -> str:
        length = len(request.token_ids)
        if length == 0:
            return "the prompt is empty"
        vocab_size = self._decoder.spec.vocab_size
        for token_id in (min(request.token_ids), max(request.token_ids)):
            if not 0 <= token_id < vocab_size:
                return f"token id {token_id} is not in the model's vocabulary ({vocab_size} tokens)"
        if length >= self.max_context_tokens:
            return (
                f"the prompt has {length} tokens, and the context ({self.max_context_tokens} tokens: "
                "engine.max_context_tokens or the model's own limit) leaves no room for a completion"
            )
        longest = min(length + request.params.max_tokens, self.max_context_tokens)
        # one more, since a shared block is copied while its original is still held
        needed = self._blocks.blocks_for(longest) + 1
        if needed > self._blocks.num_blocks:
            return (
                f"{longest} tokens need {needed} KV blocks and there are {self._blocks.num_blocks}; "
                "raise engine.kv_cache_gb or lower max_tokens"
            )
        return ""

    def _build_speculator(self) -> Speculator | None:
        drafters = make_drafters(self.config, self._decoder)
        if not drafters:
            return None
        costs = measure_costs(
            self._runner,
            self._decoder,
            self._blocks,
            max_rows=self.config.max_tokens_per_step,
            max_context=self.max_context_tokens,
        )
        return Speculator(
            drafters,
            costs,
            max_draft_tokens=self.config.speculation.max_draft_tokens,
            eos_token_ids=self._decoder.spec.eos_token_ids,
        )

    def _postprocess(self, batch: Batch, logits_RV: torch.Tensor) -> list[Completion]:
        """Draw a token at every position computed; keep those that the drafts had right, and the one behind them."""
        sampled: dict[RequestState, Sequence[int]] = {}
        reasons: dict[RequestState, FinishReason] = {}
        for drawn in draw(self._scheduler, batch, logits_RV):
            state = drawn.state
            num_before = len(state.token_ids)
            reason = keep(
                self._scheduler,
                drawn,
                policy_version=self.policy_version,
                finish_reason=self._finish_reason,
            )
            sampled[state] = state.token_ids[num_before:]
            if reason is not None:
                reasons[state] = reason
        self._stats.num_sampled_tokens += sum(map(len, sampled.values()))
        if self.speculator is not None and sampled:
            self.speculator.observe(batch, sampled)
        return [self._finish(state, reason) for state, reason in reasons.items()]

    def _finish_reason(self, state: RequestState, token_id: int) -> FinishReason | None:
        params = state.request.params
        if params.ends_at(token_id, eos_token_ids=self._decoder.spec.eos_token_ids):
            return FinishReason.STOP
        if params.stop and ends_with_stop(state.output_ids, params.stop, self.tokenizer):
            return FinishReason.STOP
        is_full = len(state.token_ids) >= self.max_context_tokens
        return FinishReason.LENGTH if is_full or state.num_output >= params.max_tokens else None

    def _finish(self, state: RequestState, reason: FinishReason) -> Completion:
        self._scheduler.finish(state)
        assert state.status is Status.FINISHED, "the scheduler let go of it"
        if self.speculator is not None:
            self.speculator.finish(state, policy_version=self.policy_version)
        del self._states[state.request.request_id]
        output_ids = state.output_ids
        return Completion(
            request_id=state.request.request_id,
            token_ids=output_ids,
            logprobs=state.logprobs,
            policy_versions=state.policy_versions,
            finish_reason=reason,
            text=text_of(output_ids, state.request.params.stop, self.tokenizer),
        )

    def _empty_decoder(self, *, is_int8: bool) -> Decoder:
        weight = self._decoder.embed_tokens
        return empty_decoder(
            self._decoder.spec, dtype=weight.dtype, device=weight.device, is_int8=is_int8
        )

    def _swap_decoders(self) -> None:
        self._decoder, self._shadow = self._shadow, self._decoder
