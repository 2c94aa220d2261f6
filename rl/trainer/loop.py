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

from rl.checkpoint import Checkpointer, RunState
from rl.config import RunMode, TrainConfig
from rl.rollouts import RolloutGroup
from rl.stop_signal import StopSignal
from rl.tracking.tracker import Tracker
from rl.trainer.collect.batches import Batches, CollectedBatch
from rl.trainer.collect.collector import Collector
from rl.trainer.collect.demonstrations import Demonstrations
from rl.trainer.collect.encoded_prompts import EncodedPrompts
from rl.trainer.collect.evaluation import Evaluation, evaluate
from rl.trainer.collect.scoring import check_scores
from rl.trainer.learn.learner import Learner
from rl.trainer.metrics.overprovision import overprovision_metrics
from rl.trainer.metrics.skipped_steps import SkippedSteps
from rl.trainer.metrics.staleness import Pipeline, check_staleness, staleness_metrics
from rl.trainer.metrics.step import memory_metrics, rollout_metrics, sample_rows
from rl.trainer.metrics.stopwatch import Stopwatch
from rl.trainer.weights.finite import check_finite
from rollout.config import StorageDtype
from rollout.core import SamplingParams
from rollout.fleet.base import Fleet
from rollout.models.int8 import int8_weights
from rollout.weights.update import make_update

__all__ = ["Parts", "TrainLoop"]

logger = logging.getLogger("paceline")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the loop drives; built by `rl.trainer.build`."""

    train_prompts: EncodedPrompts
    held_out_prompts: EncodedPrompts
    fleet: Fleet
    collector: Collector
    learner: Learner
    checkpointer: Checkpointer
    tracker: Tracker
    answers: Demonstrations | None = None
    """What is learned instead of what is sampled."""


class TrainLoop:
    """Runs from `state` to `trainer.num_steps`, or to a stop signal.

    Args:
        config: every key of the run.
        parts: what the loop drives.
        state: where the run stands.
        max_resample_batches: batches' worth of groups without signal that are replaced in a step.
        stop: says when to stop.
    """

    def __init__(
        self,
        config: TrainConfig,
        parts: Parts,
        state: RunState,
        *,
        max_resample_batches: int = 0,
        stop: StopSignal | None = None,
    ) -> None:
        self._config = config
        self._parts = parts
        self._version = self._first_version = state.policy_version
        self._batches = Batches(
            config,
            parts.train_prompts,
            parts.collector,
            state,
            answers=parts.answers,
            max_resample_batches=max_resample_batches,
        )
        self._stop = stop or StopSignal()
        self._gave_up_int8 = state.gave_up_int8
        self._skipped = SkippedSteps(config.trainer.max_skipped_steps)
        self._save_failed = False
        self.first_evaluation: Evaluation | None = None
        self.last_evaluation: Evaluation | None = None
        self.last_groups: Sequence[RolloutGroup] = ()
        """Groups of the last step."""

    @property
    def policy_version(self) -> int:
        return self._version

    @property
    def _is_int8(self) -> bool:
        """Whether updates are quantized."""
        config = self._config
        wants_int8 = config.engine.weight_dtype is StorageDtype.int8
        return wants_int8 and config.mode is RunMode.full and not self._gave_up_int8

    def run(self) -> bool:
        """Train; returns True when all steps were done, False after a stop signal. The last version is saved either way.

        A job's processes end together: what fails here because scorers, workers or ranks got the signal as well is part of
        stopping, and no error.
        """
        is_done = False
        try:
            is_done = self._run()
        except (RuntimeError, OSError, EOFError) as error:
            if not self._is_consequence_of_stop(error):
                raise
        finally:
            # whatever ended the run, its last whole version is kept
            if not self._parts.learner.is_updating:
                self._keep_last_version(is_done=is_done)
        return is_done

    def _run(self) -> bool:
        num_steps = self._config.trainer.num_steps
        self.first_evaluation = self._evaluate(is_full=self._version >= num_steps)
        while self._version < num_steps:
            if self._stop.requested or not self._step():
                return False
            self._after_step()
        self._skipped.check_end()
        return not self._stop.requested

    def _is_consequence_of_stop(self, error: Exception) -> bool:
        is_one = self._stop.explains_failure()
        if is_one:
            logger.info("%s, so this is no failure: %s", self._stop.name, error)
        return is_one

    def _keep_last_version(self, *, is_done: bool) -> None:
        nothing_new = self._version == self._first_version and not is_done
        if nothing_new or self._save_failed or self._skipped.is_all_skipped:
            return
        try:
            self._save_checkpoint()
        except (RuntimeError, EOFError) as error:  # of ranks that the signal has ended
            if not self._stop.requested:
                raise
            logger.warning(
                "step %d could not be kept, since processes were gone: %s", self._version, error
            )

    def _step(self) -> bool:
        """Consume one batch; False if it was told to stop before the batch was complete."""
        stopwatch = Stopwatch()
        progress = self._parts.tracker.progress
        progress.begin_phase("rollout")
        batch = self._batches.next(
            self._version,
            stopwatch,
            progress=progress.advance,
            should_stop=lambda: self._stop.requested,
        )
        if batch is None:
            return False
        groups = batch.groups
        self._check_scores(groups, "they are left out of this step")
        seconds = stopwatch.seconds("rollout") + stopwatch.seconds("score_wait")
        metrics = rollout_metrics(groups, seconds=seconds) | overprovision_metrics(groups)
        metrics["rollout/num_dropped_groups"] = len(groups) - len(batch.trained)
        if self._config.mode is not RunMode.rollout_only:
            progress.begin_phase("training")
            metrics |= self._train(batch.trained, stopwatch)
        else:
            self._version += 1
        metrics |= self._parts.fleet.take_metrics() | stopwatch.metrics() | memory_metrics()
        if self._parts.answers is not None or self._config.max_staleness:
            # nobody decoded the tokens of this batch, or at other times than those that this step waited
            del metrics["rollout/tokens_per_second"]
        if self._config.max_staleness:
            if "fleet/tokens_per_second" in metrics:
                metrics["rollout/tokens_per_second"] = metrics["fleet/tokens_per_second"]
            metrics |= self._predicted_staleness(batch, metrics)
        header = {"step": self._version, "policy_version": self._version}
        render = self._parts.train_prompts.render
        samples = [
            {**row, "rendered_prompt": render(group.rollouts[0].prompt_ids)}
            for group, row in zip(groups, sample_rows(groups, step=self._version), strict=True)
        ]
        self.last_groups = groups
        self._parts.tracker.step({**header, **metrics}, samples)
        return True

    def _check_scores(self, groups: Sequence[RolloutGroup], consequence: str) -> None:
        problem = check_scores(groups, max_error_rate=self._config.reward.max_error_rate)
        if problem:
            logger.warning("%s; %s", problem, consequence)

    def _train(self, groups: Sequence[RolloutGroup], stopwatch: Stopwatch) -> dict[str, float]:
        """Learn from a batch and publish what came of it."""
        learner = self._parts.learner
        if learner.is_sampled:
            check_staleness(groups, self._version, max_staleness=self._config.max_staleness)
        metrics = learner.learn(groups, self._version, stopwatch)
        if self._config.max_staleness:
            metrics |= staleness_metrics(groups, self._version)
        self._check_mismatch(metrics)
        self._skipped.observe(metrics["optimizer/grad_norm"])
        with stopwatch("publish"):
            self._publish()
        learner.published(self._version)
        return metrics

    def _predicted_staleness(
        self, batch: CollectedBatch, metrics: Mapping[str, float]
    ) -> dict[str, float]:
        """Where the batch has a staleness and the fleet has decoded since the last one."""
        if not {"staleness/mean", "rollout/concurrency"} <= metrics.keys():
            return {}
        waited = sum(metrics.get(f"seconds/{phase}", 0.0) for phase in ("rollout", "score_wait"))
        pipeline = Pipeline.measure(
            batch.trained,
            concurrency=metrics["rollout/concurrency"],
            speed_ratio=1 - waited / metrics["seconds/step"]
            if self._parts.fleet.is_concurrent
            else 0.0,
            num_waiting=batch.num_waiting,
        )
        return {"staleness/predicted": pipeline.staleness(max_staleness=self._config.max_staleness)}

    def _check_mismatch(self, metrics: Mapping[str, float]) -> None:
        """Let the engine go on in plain weights, from the next update on, when 8 bits are too few."""
        k3, limit = metrics.get("mismatch/k3", 0.0), self._config.correction.max_k3
        has_int8_kv = self._config.engine.kv_dtype is StorageDtype.int8
        if k3 <= limit or not self._parts.learner.is_sampled or not (self._is_int8 or has_int8_kv):
            return
        cure = (
            "the run goes on with engine.weight_dtype=plain"
            if self._is_int8
            else "resume the run with engine.kv_dtype=plain, or raise the limit"
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
        check_finite(update.tensors, version=self._version + 1)
        try:
            self._parts.fleet.update_weights(update)
        except RuntimeError as error:
            # the step is made, and its weights can be kept, whatever became of the workers
            if not self._is_consequence_of_stop(error):
                raise
        self._version += 1

    def _after_step(self) -> None:
        config, version = self._config, self._version
        is_last = version == config.trainer.num_steps
        if is_last or _is_due(version, config.evaluation.every_steps):
            self.last_evaluation = self._evaluate(is_full=is_last) or self.last_evaluation
        is_due = _is_due(version, config.checkpoint.every_steps)
        if not is_last and is_due and not self._skipped.is_skipping:
            self._save_checkpoint()

    def _evaluate(self, *, is_full: bool) -> Evaluation | None:
        config = self._config
        is_off = config.evaluation.every_steps == 0 or config.mode is RunMode.train_only
        if is_off or self._stop.requested:
            return None
        held_out = self._parts.held_out_prompts
        count = len(held_out)
        if not is_full and config.evaluation.num_prompts:
            count = min(count, config.evaluation.num_prompts)
        sampling = SamplingParams.of(config.sampling, seed=config.seed)
        progress = self._parts.tracker.progress
        progress.begin_phase("evaluation")
        stopwatch = Stopwatch()
        with stopwatch("evaluate"):
            evaluation = evaluate(
                self._parts.collector,
                [held_out[i] for i in range(count)],
                params=replace(sampling, temperature=0.0),
                progress=progress.advance,
                should_stop=lambda: self._stop.requested,
            )
        if evaluation is not None:
            self._check_scores(evaluation.groups, "they count as wrong in this evaluation")
            row = {"step": self._version, "policy_version": self._version, **evaluation.metrics()}
            self._parts.tracker.evaluation(
                {**row, "seconds/evaluate": stopwatch.seconds("evaluate")}
            )
        return evaluation

    def _save_checkpoint(self) -> None:
        """Save the current version, unless it is saved or the run trains nothing."""
        if (
            self._config.mode is not RunMode.full
            or self._parts.checkpointer.latest == self._version
        ):
            return
        self._parts.tracker.progress.begin_phase("checkpoint")
        stopwatch = Stopwatch()
        learner = self._parts.learner
        state = RunState(
            policy_version=self._version,
            accepted_groups=self._batches.num_accepted,
            dropped_groups=self._batches.num_dropped,
            gave_up_int8=self._gave_up_int8,
        )
        self._save_failed = True  # until it is done: what failed once is not tried again at the end
        with stopwatch("checkpoint"):
            path: Path = self._parts.checkpointer.save(
                state,
                named_weights=learner.named_weights(),
                trainer_state=learner.state_dict(),
                fleet_state=self._parts.fleet.state_dict(),
                write_beside=learner.write_beside,
            )
        self._save_failed = False
        fields: Mapping[str, Any] = {
            "step": self._version,
            "policy_version": self._version,
            "path": str(path),
            "seconds/checkpoint": stopwatch.seconds("checkpoint"),
        }
        self._parts.tracker.checkpoint(fields)


def _is_due(version: int, every_steps: int) -> bool:
    return every_steps > 0 and version % every_steps == 0
