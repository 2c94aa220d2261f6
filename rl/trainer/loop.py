"""The loop.

    prompts -> admit (staleness capacity) -> fleet: generate -> score (pool) -> group complete -> advantages
            -> pack -> forward/backward* -> step -> publish v+1 -> fleet: stage, verify, commit

One batch is `num_prompts_per_step` groups, taken in `group_id` order. `policy_version` counts the batches
consumed, also those whose step was skipped because a loss was not finite.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rl.checkpoint.checkpoint import Checkpointer, RunState
from rl.config import RunMode, TrainConfig
from rl.data.prompts import Prompt, PromptOrder
from rl.rollouts import NO_VERSION, Purpose, RolloutGroup
from rl.tracking.tracker import Tracker
from rl.trainer.admission import Admission
from rl.trainer.answers import Answers
from rl.trainer.collector import Collector, count_unscored
from rl.trainer.evaluation import Evaluation, evaluate
from rl.trainer.learner import Learner
from rl.trainer.metrics import is_uniform, memory_metrics, rollout_metrics, sample_rows
from rl.trainer.prompts import EncodedPrompts
from rl.trainer.stop_signal import StopSignal
from rl.trainer.stopwatch import Stopwatch
from rollout.config import StorageDtype
from rollout.engine.core import SamplingParams
from rollout.fleet.fleet import Fleet
from rollout.models.int8 import int8_weights
from rollout.weights.update import make_update

__all__ = ["Parts", "ScoringError", "TrainLoop"]

logger = logging.getLogger("paceline")

_POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the loop drives; built by `rl.trainer.assembly`."""

    train_prompts: EncodedPrompts
    held_out_prompts: EncodedPrompts
    fleet: Fleet
    collector: Collector
    learner: Learner
    checkpointer: Checkpointer
    tracker: Tracker
    answers: Answers | None = None
    """What is learned instead of what is sampled."""


class ScoringError(RuntimeError):
    """Too many rollouts of a step could not be scored."""


class TrainLoop:
    """Runs from `state` to `trainer.num_steps`, or to Ctrl-C."""

    def __init__(
        self, config: TrainConfig, parts: Parts, state: RunState, *, max_refills: int = 0
    ) -> None:
        self._config = config
        self._parts = parts
        self._version = state.policy_version
        self._order = PromptOrder(len(parts.train_prompts), seed=config.seed)
        self._dropped = state.dropped_groups
        self._next_group = state.accepted_groups + state.dropped_groups
        self._admission = Admission(num_prompts_per_step=config.num_prompts_per_step)
        self._admission.accepted = state.accepted_groups
        self._complete: dict[int, RolloutGroup] = {}
        self._max_dropped = max_refills * config.num_prompts_per_step
        self._stop = StopSignal()
        self._gave_up_int8 = state.gave_up_int8
        self.first_evaluation: Evaluation | None = None
        self.last_evaluation: Evaluation | None = None

    @property
    def policy_version(self) -> int:
        return self._version

    @property
    def _is_int8(self) -> bool:
        """Whether updates are quantized."""
        config = self._config
        wants_int8 = config.engine.weight_dtype is StorageDtype.INT8
        return wants_int8 and config.mode is RunMode.FULL and not self._gave_up_int8

    def run(self) -> bool:
        """Train; True when all steps were done, False when it was told to stop. The last version is saved."""
        with self._stop:
            try:
                self._run()
            finally:
                # whatever ended the run, its last whole version is kept
                if not self._parts.learner.is_updating:
                    self._save_checkpoint()
        return not self._stop.requested

    def _run(self) -> None:
        self.first_evaluation = self._evaluate(is_full=True)
        while self._version < self._config.trainer.num_steps and not self._stop.requested:
            if not self._step():
                break
            self._after_step()

    def _step(self) -> bool:
        """Consume one batch; False if it was told to stop before the batch was complete."""
        stopwatch = Stopwatch()
        progress = self._parts.tracker.progress
        progress.begin_phase("rollout")
        groups = self._collect(stopwatch)
        if groups is None:
            return False
        self._check_scores(groups)
        seconds = stopwatch.seconds("rollout") + stopwatch.seconds("score_wait")
        metrics = rollout_metrics(groups, seconds=seconds)
        batch = self._without_dropped(groups)
        metrics["rollout/num_dropped_groups"] = len(groups) - len(batch)
        if self._config.mode is not RunMode.ROLLOUT_ONLY:
            progress.begin_phase("training")
            metrics |= self._train(batch, stopwatch)
        else:
            self._version += 1
        metrics |= self._parts.fleet.take_metrics() | stopwatch.metrics() | memory_metrics()
        header = {"step": self._version, "policy_version": self._version}
        samples = sample_rows(groups, step=self._version)
        self._parts.tracker.step({**header, **metrics}, samples)
        return True

    def _collect(self, stopwatch: Stopwatch) -> list[RolloutGroup] | None:
        """The groups of the next batch, and those that it replaced, in `group_id` order; None when told to stop before
        they were complete.

        A group that is dropped makes room for one more when it arrives. How many are begun depends on their rewards
        alone, and which of them are dropped is decided in `group_id` order: a batch never depends on who was fast.
        """
        size = self._config.num_prompts_per_step
        first = self._admission.accepted + self._dropped
        num_dropped = 0
        collector, progress = self._parts.collector, self._parts.tracker.progress
        while not all(first + i in self._complete for i in range(size + num_dropped)):
            if self._stop.requested:
                return None
            self._admit()
            with stopwatch("score_wait" if collector.is_generated else "rollout"):
                for group in collector.poll(_POLL_SECONDS):
                    self._complete[group.group_id] = group
                    if is_uniform(group) and num_dropped < self._max_dropped:
                        num_dropped += 1
                        self._admission.drop()
            self._parts.fleet.status().check()
            progress.advance(len(self._complete) - num_dropped, size)
        self._admission.accept(size)
        self._dropped += num_dropped
        return [self._complete.pop(first + i) for i in range(size + num_dropped)]

    def _without_dropped(self, groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
        """A batch of `num_prompts_per_step` groups: the first ones without signal are left out."""
        batch, num_dropped = [], len(groups) - self._config.num_prompts_per_step
        for group in groups:
            if is_uniform(group) and num_dropped:
                num_dropped -= 1
            else:
                batch.append(group)
        num_left = sum(map(is_uniform, batch))
        if self._max_dropped and num_left:
            logger.warning(
                "step %d: %d of %d groups scored the same throughout and train nothing; algorithm.max_refills=%d "
                "was not enough to replace them",
                self._version + 1,
                num_left,
                len(batch),
                self._max_dropped // self._config.num_prompts_per_step,
            )
        return batch

    def _admit(self) -> None:
        capacity = self._admission.capacity(self._version)
        for _ in range(capacity):
            prompt_id = self._order.prompt_id(self._next_group)
            prompt, token_ids = self._parts.train_prompts[prompt_id]
            self._begin(prompt, token_ids)
            self._next_group += 1
        self._admission.begin(capacity)

    def _begin(self, prompt: Prompt, token_ids: Sequence[int]) -> None:
        collector, answers = self._parts.collector, self._parts.answers
        if answers is not None:
            text, answer_ids = answers(prompt)
            collector.demonstrate(
                prompt, token_ids, text=text, answer_ids=answer_ids, group_id=self._next_group
            )
            return
        collector.begin(
            prompt,
            token_ids,
            group_id=self._next_group,
            group_size=self._config.group_size,
            params=self._params(self._config.sampling.temperature),
            purpose=Purpose.TRAINING,
        )

    def _params(self, temperature: float) -> SamplingParams:
        params = SamplingParams.of(self._config.sampling, seed=self._config.seed)
        return replace(params, temperature=temperature)

    def _check_scores(self, groups: Sequence[RolloutGroup]) -> None:
        num_unscored, first = count_unscored(groups)
        if first is None:
            return
        total = sum(len(group.rollouts) for group in groups)
        limit = self._config.reward.max_error_rate
        summary = f"{num_unscored} of {total} rollouts could not be scored ({first.kind.value}: {first.message})"
        if num_unscored > limit * total:
            raise ScoringError(
                f"{summary}; more than reward.max_error_rate={limit} allows: mend the scorer"
            )
        logger.warning("%s; they are left out of this step", summary)

    def _train(self, groups: Sequence[RolloutGroup], stopwatch: Stopwatch) -> dict[str, float]:
        """Learn from a batch and publish what came of it."""
        learner = self._parts.learner
        self._check_versions(groups)
        metrics = learner.learn(groups, self._version, stopwatch)
        self._check_mismatch(metrics)
        with stopwatch("publish"):
            self._publish()
        learner.published(self._version)
        return metrics

    def _check_versions(self, groups: Sequence[RolloutGroup]) -> None:
        """Refuse tokens of a policy that this step does not train."""
        versions = {v for g in groups for r in g.rollouts for v in r.policy_versions} - {NO_VERSION}
        sampled = {self._version} if self._parts.answers is None else set()
        if self._config.mode is RunMode.FULL and versions != sampled:
            raise RuntimeError(
                f"step {self._version + 1} trains version {self._version}, "
                f"but its rollouts come from versions {sorted(versions)}"
            )

    def _check_mismatch(self, metrics: Mapping[str, float]) -> None:
        """Let the engine go on in plain weights, from the next update on, when 8 bits are too few."""
        k3, limit = metrics.get("mismatch/k3", 0.0), self._config.correction.max_k3
        has_int8_kv = self._config.engine.kv_dtype is StorageDtype.INT8
        is_sampled = self._config.mode is RunMode.FULL
        if k3 <= limit or not is_sampled or not (self._is_int8 or has_int8_kv):
            return
        cure = (
            "the run goes on with engine.weight_dtype=PLAIN"
            if self._is_int8
            else "resume the run with engine.kv_dtype=PLAIN, or raise the limit"
        )
        logger.warning(
            "step %d: the engine's policy in 8 bits is %.3g nats per token (K3) from the trainer's, more than "
            "correction.max_k3=%g; %s",
            self._version + 1,
            k3,
            limit,
            cure,
        )
        self._gave_up_int8 |= self._is_int8

    def _publish(self) -> None:
        named_weights = self._parts.learner.named_weights()
        if self._is_int8:
            named_weights = int8_weights(named_weights)
        update = make_update(self._version + 1, named_weights)
        self._parts.fleet.update_weights(update)
        self._version += 1

    def _after_step(self) -> None:
        config, version = self._config, self._version
        is_last = version == config.trainer.num_steps
        if is_last or _is_due(version, config.evaluation.every_steps):
            self.last_evaluation = self._evaluate(is_full=is_last) or self.last_evaluation
        if not is_last and _is_due(version, config.checkpoint.every_steps):
            self._save_checkpoint()

    def _evaluate(self, *, is_full: bool) -> Evaluation | None:
        config = self._config
        if config.evaluation.every_steps == 0 or config.mode is RunMode.TRAIN_ONLY:
            return None
        held_out = self._parts.held_out_prompts
        count = len(held_out)
        if not is_full and config.evaluation.num_prompts:
            count = min(count, config.evaluation.num_prompts)
        progress = self._parts.tracker.progress
        progress.begin_phase("evaluation")
        stopwatch = Stopwatch()
        with stopwatch("evaluate"):
            evaluation = evaluate(
                self._parts.collector,
                [held_out[i] for i in range(count)],
                params=self._params(temperature=0.0),
                progress=progress.advance,
                should_stop=lambda: self._stop.requested,
            )
        if evaluation is not None:
            row = {"step": self._version, "policy_version": self._version, **evaluation.metrics()}
            self._parts.tracker.evaluation(
                {**row, "seconds/evaluate": stopwatch.seconds("evaluate")}
            )
        return evaluation

    def _save_checkpoint(self) -> None:
        """Save the current version, unless it is saved or nothing was trained."""
        if (
            self._config.mode is not RunMode.FULL
            or self._parts.checkpointer.latest == self._version
        ):
            return
        self._parts.tracker.progress.begin_phase("checkpoint")
        stopwatch = Stopwatch()
        learner = self._parts.learner
        state = RunState(
            policy_version=self._version,
            accepted_groups=self._admission.accepted,
            dropped_groups=self._dropped,
            gave_up_int8=self._gave_up_int8,
        )
        with stopwatch("checkpoint"):
            path: Path = self._parts.checkpointer.save(
                state,
                named_weights=learner.named_weights(),
                trainer_state=learner.state_dict(),
                fleet_state=self._parts.fleet.state_dict(),
            )
        fields: Mapping[str, Any] = {
            "step": self._version,
            "policy_version": self._version,
            "path": str(path),
            "seconds/checkpoint": stopwatch.seconds("checkpoint"),
        }
        self._parts.tracker.checkpoint(fields)


def _is_due(version: int, every_steps: int) -> bool:
    return every_steps > 0 and version % every_steps == 0
