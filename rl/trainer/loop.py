"""Training loop.

    prompts -> admit (staleness capacity) -> fleet: generate -> score (pool) -> group complete -> advantages
            -> pack -> forward/backward* -> step -> publish v+1 -> fleet: stage, verify, commit

A batch is `num_prompts_per_step` groups, taken in `group_id` order. `policy_version` counts the batches that were
consumed, including those whose optimizer step was skipped because a loss was not finite.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rl.config import RunMode, TrainConfig
from rl.rollouts import RolloutGroup
from rl.runs.checkpoint import Checkpointer, RunState
from rl.runs.stop_signal import StopSignal
from rl.tracking.tracker import Tracker
from rl.trainer.collect.batches import Batches
from rl.trainer.collect.collector import Collector
from rl.trainer.collect.demonstrations import Demonstrations
from rl.trainer.collect.encoded_prompts import EncodedPrompts
from rl.trainer.collect.evaluation import Evaluation, evaluate
from rl.trainer.collect.scoring import check_scores
from rl.trainer.learn.learner import Learner
from rl.trainer.metrics.skipped_steps import SkippedSteps
from rl.trainer.metrics.staleness import check_staleness
from rl.trainer.metrics.stopwatch import Stopwatch
from rl.trainer.metrics.training import LearningResult
from rl.trainer.publisher import Publisher
from rl.trainer.step_report import StepReport
from rollout.core import SamplingParams
from rollout.fleet.base import Fleet

__all__ = ["Parts", "TrainLoop"]

logger = logging.getLogger("paceline")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Parts that the loop uses; `rl.trainer.build` assembles them."""

    train_prompts: EncodedPrompts
    held_out_prompts: EncodedPrompts
    fleet: Fleet
    collector: Collector
    learner: Learner
    checkpointer: Checkpointer
    tracker: Tracker
    answers: Demonstrations | None = None
    """Answers to learn, for an algorithm that samples none."""


class TrainLoop:
    """Loop from `state` to `trainer.num_steps`, or to a stop signal.

    Args:
        config: config of the run.
        parts: parts that the loop uses.
        state: progress of the run so far.
        max_resample_batches: maximum number of groups without signal to replace in a step, in batches.
        stop: stop signal, which ends the loop.
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
        self._report = StepReport(
            config,
            parts.fleet,
            parts.tracker,
            render=parts.train_prompts.render,
            decodes=parts.answers is None,
        )
        self._publisher = Publisher(
            config, parts.learner, parts.fleet, gave_up_int8=state.gave_up_int8
        )
        self._skipped = SkippedSteps(config.trainer.max_skipped_steps)
        self._save_failed = False
        self.first_evaluation: Evaluation | None = None
        self.last_evaluation: Evaluation | None = None
        self.last_groups: Sequence[RolloutGroup] = ()
        """Groups of the last step."""

    @property
    def policy_version(self) -> int:
        return self._version

    def run(self) -> bool:
        """Train, and save the last version. Return True after all steps, False after a stop signal.

        A signal to a whole job also stops scorers, workers and ranks. A failure that follows from it is part of
        stopping, and is not an error.
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
            logger.info("stopped by %s, so this is not a failure: %s", self._stop.name, error)
        return is_one

    def _keep_last_version(self, *, is_done: bool) -> None:
        # after an error before the first step, what the run began with is kept for a resume with another config
        is_stopped = not is_done and self._stop.requested
        nothing_new = self._version == self._first_version and is_stopped
        if nothing_new or self._save_failed or self._skipped.is_all_skipped:
            return
        try:
            self._save_checkpoint()
        except (RuntimeError, EOFError) as error:  # from ranks that the signal has ended
            if not self._stop.requested:
                raise
            logger.warning(
                "step %d could not be saved, because processes have ended: %s", self._version, error
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
        self._check_scores(batch.groups, "they are left out of this step")
        learning = None
        if self._config.mode is RunMode.rollout_only:
            self._version += 1
        else:
            progress.begin_phase("training")
            learning = self._train(batch.trained, stopwatch)
        self.last_groups = batch.groups
        self._report(batch, learning, stopwatch, version=self._version)
        return True

    def _check_scores(self, groups: Sequence[RolloutGroup], consequence: str) -> None:
        problem = check_scores(groups, max_error_rate=self._config.reward.max_error_rate)
        if problem:
            logger.warning("%s; %s", problem, consequence)

    def _train(self, groups: Sequence[RolloutGroup], stopwatch: Stopwatch) -> LearningResult:
        """Learn from a batch and publish the new version."""
        learner, version = self._parts.learner, self._version
        if learner.is_sampled:
            check_staleness(groups, version, max_staleness=self._config.max_staleness)
        result = learner.learn(groups, version, stopwatch)
        self._publisher.check_mismatch(result.mismatch_k3, step=version + 1)
        self._skipped.observe(result.grad_norm)
        with stopwatch("publish"):
            self._publisher.publish(version + 1, tolerates=self._is_consequence_of_stop)
            self._version += 1
        learner.published(self._version)
        return result

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
            gave_up_int8=self._publisher.gave_up_int8,
        )
        self._save_failed = (
            True  # until it is done, so that a failed save is not repeated at the end
        )
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
