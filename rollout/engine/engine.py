"""The engine's loop: schedule -> run -> sample -> postprocess."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kernels.numerics import is_thread_invariant
from rollout.config import Dtype, EngineConfig, ModelConfig, StorageDtype
from rollout.core import (
    Completion,
    FinishReason,
    Request,
    RequestState,
    SamplingParams,
    Status,
    StepBatch,
)
from rollout.engine.block_manager import BlockManager
from rollout.engine.draft_planner import DraftPlanner
from rollout.engine.generate import generate
from rollout.engine.limits import EngineLimits
from rollout.engine.runner import Runner, num_cache_blocks
from rollout.engine.scheduler import Scheduler
from rollout.engine.thread_policy import ThreadPolicy
from rollout.engine.verification import draft_limits, draw, keep
from rollout.engine.weights import EngineWeights
from rollout.models.decoder import Decoder
from rollout.stats import EngineStats
from rollout.text.prompts import Prompt
from rollout.text.stops import text_of

__all__ = ["Engine"]


class Engine:
    """Continuous batching over a paged KV cache, on one device, in the caller's thread.

    `generate` is a wrapper around `add_request`, `step` and `abort`. `weights` takes new weights, between two steps.
    `rollout.build` makes engines from a config, with the speculator that the config asks for.

    Args:
        decoder: the model. The engine runs it, or a copy in 8 bits, until the first commit of other weights.
        tokenizer: tokenizer of the model.
        config: limits and sizes; `config.speculation` is not read here.
        policy_version: version of the decoder's weights.

    Raises:
        ValueError: the KV cache cannot hold a block; or int8 weights were asked for on a GPU.
    """

    def __init__(
        self, decoder: Decoder, tokenizer: Any, config: EngineConfig, *, policy_version: int = 0
    ) -> None:
        self.tokenizer = tokenizer
        self.config = config
        spec, weight = decoder.spec, decoder.embed_tokens
        is_int8 = config.kv_dtype is StorageDtype.int8
        num_blocks = num_cache_blocks(spec, config, dtype=weight.dtype)
        self.max_context_tokens = min(config.max_context_tokens, spec.max_positions)
        self.limits = EngineLimits(
            vocab_size=spec.vocab_size,
            max_context_tokens=self.max_context_tokens,
            eos_token_ids=spec.eos_token_ids,
            tokenizer=tokenizer,
        )
        self.blocks = BlockManager(
            num_blocks=num_blocks, block_size=config.block_size, prefix_cache=config.prefix_cache
        )
        self._scheduler = Scheduler(
            self.blocks,
            max_requests=config.max_requests,
            max_tokens_per_step=config.max_tokens_per_step,
        )
        self.runner = Runner(
            spec,
            num_blocks=num_blocks,
            block_size=config.block_size,
            dtype=weight.dtype,
            device=weight.device,
            is_int8=is_int8,
        )
        self.weights = EngineWeights(
            decoder, config, runner=self.runner, scheduler=self._scheduler, version=policy_version
        )
        is_free = config.yield_threads and is_thread_invariant(weight.dtype, weight.device)
        self._threads = ThreadPolicy() if is_free else contextlib.nullcontext()
        self.speculator: DraftPlanner | None = None
        """Chooses drafts for each step; None: steps have no drafts. May be replaced between two steps."""
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
        """Makes an engine from a Hugging Face directory or hub id.

        Args:
            path: directory or hub id, with config.json, safetensors files and a tokenizer.
            dtype: "auto", "bfloat16", "float32" or "float64"; auto is bfloat16 where the device has it.
            device: device to run on.
            config: limits and sizes; None: the defaults of `rollout.config.EngineConfig`.
        """
        from rollout.build.engines import load_engine  # the room above this one

        model = ModelConfig(path=str(path), dtype=Dtype(dtype))
        return load_engine(model, config or EngineConfig(), device=device)

    @property
    def policy_version(self) -> int:
        """Policy version of the live weights."""
        return self.weights.version

    @property
    def decoder(self) -> Decoder:
        """Decoder of the live weights; another object after every commit."""
        return self.weights.decoder

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` has work: unfinished requests, or a commit that waits for them."""
        return bool(self._states or self._answered or self.weights.is_commit_pending)

    @property
    def num_running(self) -> int:
        """Number of requests that hold blocks of the KV cache."""
        return self._scheduler.num_running

    @property
    def num_blocks(self) -> int:
        """Number of blocks of the KV cache."""
        return self.blocks.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Number of free blocks, counting cached blocks of finished prompts that can be evicted."""
        return self.blocks.num_available

    @property
    def stats(self) -> EngineStats:
        """Counts since the engine was made."""
        self._stats.num_preemptions = self._scheduler.num_preemptions
        self._stats.num_prefix_hit_tokens = self._scheduler.num_prefix_hit_tokens
        return self._stats

    def generate(
        self,
        prompts: Sequence[Prompt] | Prompt,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[list[Completion]]:
        """Returns `params.n` completions per prompt, in the order of the prompts. Sample i of prompt g is drawn with
        `SampleKey(params.seed, g, i)`.

        An exception or Ctrl-C ends the requests of this call, and the engine takes the next call.

        Args:
            prompts: a list of prompts, each text, token ids (a list, tensor or array), or chat messages. A single prompt is
                taken as a list of one.
            params: one for all prompts, or one per prompt.

        Raises:
            ValueError: a prompt is empty or of no known form; or there are not as many params as prompts.
            RuntimeError: the engine has unfinished requests.
        """
        if self.has_unfinished:
            unfinished = len(self._states) + len(self._answered)
            raise RuntimeError(
                f"generate needs an idle engine; {unfinished} requests are unfinished"
            )
        return generate(self, prompts, params)

    def add_request(self, request: Request) -> None:
        """Queues a request. The next `step` answers one that can never fit as rejected.

        Raises:
            ValueError: the id is in use.
        """
        request_id = request.request_id
        if request_id in self._states or request_id in self._answered:
            raise ValueError(f"request_id must be new, got {request_id!r}, which is unfinished")
        reason = self.limits.why_impossible(request, self.blocks)
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
        """Ends a request now; the next `step` answers it with the tokens it has. Ignores the id of a finished request."""
        state = self._states.get(request_id)
        if state is not None:
            self._answered[request_id] = self._finish(state, FinishReason.ABORTED)

    def forget(self, request_id: str) -> None:
        """Ends a request now, without an answer. Ignores the id of a finished request."""
        self.abort(request_id)
        self._answered.pop(request_id, None)

    def step(self) -> list[Completion]:
        """Computes one batch; returns the requests that finished."""
        with self._threads:
            return self._step()

    def _step(self) -> list[Completion]:
        self.weights.advance()  # before anything that an error could lose
        finished, self._answered = list(self._answered.values()), {}
        batch = self._scheduler.schedule()
        if batch is not None:
            if self.speculator is not None:
                limits = draft_limits(batch, max_context_tokens=self.max_context_tokens)
                drafts = self.speculator.plan(batch, limits)
                batch = self._scheduler.with_drafts(batch, drafts)
                self.speculator.begin(batch)
            logits_RV = self.runner.run(self.weights.live, batch)
            finished += self._postprocess(batch, logits_RV)
            self._stats.num_steps += 1
            self._stats.num_request_steps += len(batch.chunks)
            self._stats.num_computed_tokens += sum(chunk.num_rows for chunk in batch.chunks)
        if not self._states:
            self.check_integrity()
        return finished

    def clear_prefix_cache(self) -> None:
        """Forgets cached prompts, so that the next ones are computed again."""
        self.blocks.forget()

    def check_integrity(self) -> None:
        """Recounts every block and request.

        Raises:
            RuntimeError: the counts do not agree.
        """
        self._scheduler.check_integrity()
        if self.speculator is not None:
            self.speculator.check_integrity()
        if not self._states and self.blocks.num_available != self.blocks.num_blocks:
            raise RuntimeError(
                f"idle, but only {self.blocks.num_available} of {self.blocks.num_blocks} blocks are free"
            )

    def _postprocess(self, batch: StepBatch, logits_RV: torch.Tensor) -> list[Completion]:
        """Draws a token at every computed position; keeps the tokens up to the first that differs from its draft."""
        sampled: dict[RequestState, Sequence[int]] = {}
        reasons: dict[RequestState, FinishReason] = {}
        for drawn in draw(self._scheduler, batch, logits_RV):
            state = drawn.state
            num_before = len(state.token_ids)
            reason = keep(
                self._scheduler,
                drawn,
                policy_version=self.policy_version,
                finish_reason=self.limits.finish_reason,
            )
            sampled[state] = state.token_ids[num_before:]
            if reason is not None:
                reasons[state] = reason
        self._stats.num_sampled_tokens += sum(map(len, sampled.values()))
        if self.speculator is not None and sampled:
            self.speculator.observe(batch, sampled)
        return [self._finish(state, reason) for state, reason in reasons.items()]

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
