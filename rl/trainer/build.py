"""Assembly of a run from its config. Mistakes are found here, before any training starts."""

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rl.algorithms.base.algorithm import Algorithm, Needs
from rl.algorithms.registry import make_algorithm
from rl.config import RunMode, TrainConfig
from rl.rewards.pool import ScorerPool
from rl.rewards.synthetic import random_score
from rl.runs.checkpoint import Checkpoint, Checkpointer
from rl.runs.saved_config import option_names
from rl.runs.served_files import ServedFiles
from rl.runs.stop_signal import StopSignal
from rl.tasks.task import Task, load_task
from rl.tracking.tracker import Tracker
from rl.trainer.checks import check_budget, check_config, check_context
from rl.trainer.collect.collector import Collector
from rl.trainer.collect.demonstrations import Demonstrations
from rl.trainer.collect.encoded_prompts import EncodedPrompts, leave_out_long
from rl.trainer.first_prompt import first_prompt_plan
from rl.trainer.learn.build import make_learner
from rl.trainer.learn.follower import Follower, LeadingLearner
from rl.trainer.learn.learner import Learner
from rl.trainer.loop import Parts, TrainLoop
from rl.trainer.plan import make_plan, num_parameters, processes_plan
from rl.trainer.ranks.checks import check_ranks
from rl.trainer.ranks.group import ALONE, Ranks
from rl.trainer.resume import (
    check_held_out,
    cut_unkept_steps,
    goes_on_in_place,
    resume_plan,
)
from rl.trainer.start import start_of, take_weights
from rl.version import commit, version
from rollout.build.fleets import open_fleet
from rollout.config import StorageDtype
from rollout.fleet.base import Fleet
from rollout.fleet.synthetic import SyntheticFleet
from rollout.load import LoadedModel, load_model
from rollout.models.checkpoint import torch_dtype
from rollout.models.decoder import Decoder
from rollout.models.sources import resolve_model

__all__ = ["Run", "assemble", "assemble_follower"]


_NUM_CHECKED = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    loop: TrainLoop
    tracker: Tracker
    plan: dict[str, str]  # for people, before the run starts
    num_parameters: int  # parameters of the policy


def assemble(
    config: TrainConfig, stack: ExitStack, ranks: Ranks = ALONE, stop: StopSignal | None = None
) -> Run:
    """Build everything that the first rank of a run needs.

    Args:
        config: config of the run.
        stack: exit stack that closes everything that is opened here.
        ranks: processes of the trainer.
        stop: stop signal, which ends the loop.

    Raises:
        ValueError: a user's mistake; the message has the key, the rule, the value and the cure.
    """
    algorithm = make_algorithm(config.algorithm, max_tokens=config.sampling.max_tokens)
    check_config(config, algorithm.needs)
    check_ranks(config, algorithm.needs, ranks.count)
    task = load_task(config.task)
    source = resolve_model(config.model)
    start = start_of(config, source)
    check_held_out(config, task, start.state)
    dtype = torch_dtype(config.model.dtype, "cpu")
    loaded = load_model(source, dtype=dtype, model=config.model, weights=start.weights)
    task = leave_out_long(task, config.task, loaded.tokenizer)
    prompts = _prompts(config, task, loaded)
    kind = LeadingLearner if ranks.count > 1 else Learner
    learner = _learner(config, algorithm, start, source=source, dtype=dtype, ranks=ranks, kind=kind)
    take_weights(loaded.decoder, learner, is_resumed=start.trainer_state is not None)
    if goes_on_in_place(config):
        cut_unkept_steps(config, start.state)
    tracker = stack.enter_context(_tracker(config))
    pool = stack.enter_context(_pool(config, task))
    fleet = _fleet(config, loaded.decoder, loaded.tokenizer, start, stack, stop or StopSignal())
    fleet.load_state_dict(start.fleet_state)
    collector = Collector(fleet, pool)
    stack.callback(collector.close)
    parts = Parts(
        train_prompts=prompts.train,
        held_out_prompts=prompts.held_out,
        fleet=fleet,
        collector=collector,
        learner=learner,
        checkpointer=_checkpointer(config, source, loaded, prompts.train),
        tracker=tracker,
        answers=_demonstrations(config, loaded, prompts.train)
        if algorithm.needs.is_supervised
        else None,
    )
    plan = _plan(config, algorithm.needs, task, loaded, prompts.train)
    if config.resume_from:
        plan |= resume_plan(config, start.state)
    plan |= processes_plan(config, ranks.count)
    loop = TrainLoop(
        config,
        parts,
        start.state,
        max_resample_batches=algorithm.needs.max_resample_batches,
        stop=stop,
    )
    return Run(loop=loop, tracker=tracker, plan=plan, num_parameters=num_parameters(loaded.decoder))


def assemble_follower(config: TrainConfig, ranks: Ranks) -> Follower:
    """Build everything that a rank other than the first needs.

    Raises:
        ValueError: a user's mistake, on this rank or another.
    """
    try:
        algorithm = make_algorithm(config.algorithm, max_tokens=config.sampling.max_tokens)
        check_config(config, algorithm.needs)
        check_ranks(config, algorithm.needs, ranks.count)
        source = resolve_model(config.model)
        start = start_of(config, source)
    except ValueError as error:
        ranks.check(str(error))
        raise
    dtype = torch_dtype(config.model.dtype, "cpu")
    learner = _learner(config, algorithm, start, source=source, dtype=dtype, ranks=ranks)
    return Follower(learner, ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompts:
    train: EncodedPrompts
    held_out: EncodedPrompts


def _prompts(config: TrainConfig, task: Task, loaded: LoadedModel) -> _Prompts:
    """Encode the first prompts, and raise a ValueError if one leaves no room for a completion."""
    prompts = _Prompts(
        train=EncodedPrompts(task.train, loaded.tokenizer),
        held_out=EncodedPrompts(task.held_out, loaded.tokenizer),
    )
    limit = min(config.engine.max_context_tokens, loaded.decoder.spec.max_positions)
    for what, encoded in (("training", prompts.train), ("held-out", prompts.held_out)):
        # prompts that are generated on access may be slow, so only the first ones are checked
        count = len(encoded) if isinstance(encoded.prompts, list) else _NUM_CHECKED
        max_tokens = config.sampling.max_tokens
        longest = check_context(
            encoded, count, max_tokens=max_tokens, max_context_tokens=limit, what=what
        )
        check_budget(config, longest, max_context_tokens=limit)
    return prompts


def _learner(
    config: TrainConfig,
    algorithm: Algorithm,
    start: Checkpoint,
    *,
    source: Path,
    dtype: torch.dtype,
    ranks: Ranks,
    kind: type[Learner] = Learner,
) -> Learner:
    """Build the learner, with the state that the run starts from."""
    learner = make_learner(
        config,
        algorithm,
        source=source,
        weights=start.weights,
        dtype=dtype,
        ranks=ranks,
        kind=kind,
    )
    if start.trainer_state is not None:
        learner.load_state_dict(start.trainer_state)
    return learner


def _plan(
    config: TrainConfig, needs: Needs, task: Task, loaded: LoadedModel, prompts: EncodedPrompts
) -> dict[str, str]:
    lengths = prompts.lengths(_NUM_CHECKED)
    plan = make_plan(config, needs, task, loaded.decoder, lengths)
    plan["ends at"] = loaded.ends.description
    if config.sampling.stop:  # as parsed, which shows whether "\n" is a newline
        plan["stops before"] = ", ".join(repr(text) for text in config.sampling.stop)
    return plan | first_prompt_plan(prompts)


def _tracker(config: TrainConfig) -> Tracker:
    return Tracker(
        config.tracking,
        Path(config.run_dir),
        asdict(config),
        total_steps=config.trainer.num_steps,
        names={**option_names(config), "version": version(), "commit": commit()},
        resumed_from=Path(config.resume_from) if config.resume_from else None,
    )


def _checkpointer(
    config: TrainConfig, source: Path, loaded: LoadedModel, train_prompts: EncodedPrompts
) -> Checkpointer:
    served = ServedFiles(
        model=config.model,
        task=config.task,
        sampling=config.sampling,
        tokenizer=loaded.tokenizer,
        eos_token_ids=loaded.ends.token_ids,
        example=train_prompts[0][0],
    )
    return Checkpointer(
        Path(config.run_dir),
        source=source,
        keep=config.checkpoint.keep,
        grace_seconds=config.checkpoint.grace_seconds,
        write_served=served.write,
    )


def _demonstrations(
    config: TrainConfig, loaded: LoadedModel, train_prompts: EncodedPrompts
) -> Demonstrations:
    """Return the answers to learn, after checking the first ones."""
    answers = Demonstrations(
        loaded.tokenizer,
        max_tokens=config.sampling.max_tokens,
        end_of_reply=loaded.ends.end_of_reply,
    )
    for index in range(min(len(train_prompts), _NUM_CHECKED)):
        answers(train_prompts[index][0])
    return answers


def _fleet(
    config: TrainConfig,
    decoder: Decoder,
    tokenizer: Any,
    start: Checkpoint,
    stack: ExitStack,
    stop: StopSignal,
) -> Fleet:
    """Start the fleet of the run; `stack` stops it."""
    state = start.state
    if config.mode is RunMode.train_only:
        return SyntheticFleet(decoder.spec.vocab_size, policy_version=state.policy_version)
    engine = config.engine
    if state.gave_up_int8:
        engine = replace(engine, weight_dtype=StorageDtype.plain)
    fleet = open_fleet(
        config.fleet,
        engine,
        decoder,
        tokenizer,
        weights=start.weights,
        dtype=config.model.dtype,
        policy_version=state.policy_version,
        is_stopping=stop.explains_failure,
    )
    return stack.enter_context(fleet)


def _pool(config: TrainConfig, task: Task) -> ScorerPool:
    reward = config.reward
    return ScorerPool(
        random_score if config.mode is RunMode.train_only else task.scorer,
        num_workers=reward.num_workers,
        time_limit_seconds=reward.time_limit_seconds,
        memory_limit_gb=reward.memory_limit_gb,
    )
