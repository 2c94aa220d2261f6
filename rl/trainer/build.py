"""Builds a run from its config: everything that can be wrong is found here, before training begins."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rl.algorithms.base.algorithm import Needs
from rl.algorithms.registry import make_algorithm
from rl.checkpoint import Checkpoint, Checkpointer, RunState, load_checkpoint
from rl.config import RunMode, TrainConfig
from rl.rewards.pool import ScorerPool
from rl.rewards.synthetic import random_score
from rl.saved_config import option_names
from rl.served_files import ServedFiles
from rl.stop_signal import StopSignal
from rl.tasks.task import Task, load_task
from rl.tracking.tracker import Tracker
from rl.trainer.checks import check_budget, check_config, check_context
from rl.trainer.collect.collector import Collector
from rl.trainer.collect.demonstrations import Demonstrations
from rl.trainer.collect.encoded_prompts import EncodedPrompts, leave_out_long
from rl.trainer.config import DataParallel, TrainerBackend, TrainerConfig
from rl.trainer.first_prompt import first_prompt_plan
from rl.trainer.learn.build import make_learner
from rl.trainer.learn.learner import Learner
from rl.trainer.loop import Parts, TrainLoop
from rl.trainer.ranks.checks import check_ranks
from rl.trainer.ranks.follower import Follower, LeadingLearner
from rl.trainer.ranks.group import ALONE, Ranks
from rl.trainer.resume import (
    check_held_out,
    cut_unkept_steps,
    goes_on_in_place,
    resume_plan,
)
from rl.trainer.weights.lora import count_adapter_parameters
from rl.version import commit, version
from rollout.build.fleets import open_fleet
from rollout.config import RayFleetConfig, StorageDtype
from rollout.fleet.base import Fleet
from rollout.fleet.synthetic import SyntheticFleet
from rollout.load import load_model
from rollout.models.checkpoint import torch_dtype
from rollout.models.decoder import Decoder
from rollout.models.sources import resolve_model
from rollout.models.spec import read_spec

__all__ = ["Run", "assemble", "assemble_follower"]


_NUM_CHECKED = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    loop: TrainLoop
    tracker: Tracker
    plan: dict[str, str]  # what will be used, for people
    num_parameters: int  # of the policy


def assemble(
    config: TrainConfig, stack: ExitStack, ranks: Ranks = ALONE, stop: StopSignal | None = None
) -> Run:
    """Everything a run needs; what must be closed is left to `stack`. On the first rank.

    Args:
        config: every key of the run.
        stack: closes what is opened here.
        ranks: the trainer's processes.
        stop: ends the loop.

    Raises:
        ValueError: a user's mistake: key, rule, value and cure.
    """
    algorithm = make_algorithm(config.algorithm, max_tokens=config.sampling.max_tokens)
    check_config(config, algorithm.needs)
    check_ranks(config, algorithm.needs, ranks.count)
    task = load_task(config.task)
    source = resolve_model(config.model)
    start = _start(config, source)
    check_held_out(config, task, start.state)
    dtype = torch_dtype(config.model.dtype, "cpu")
    loaded = load_model(source, dtype=dtype, model=config.model, weights=start.weights)
    decoder, tokenizer = loaded.decoder, loaded.tokenizer
    task = leave_out_long(task, config.task, tokenizer)
    train_prompts = EncodedPrompts(task.train, tokenizer)
    held_out_prompts = EncodedPrompts(task.held_out, tokenizer)
    limit = min(config.engine.max_context_tokens, decoder.spec.max_positions)
    for what, prompts in (("training", train_prompts), ("held-out", held_out_prompts)):
        # prompts that are generated when asked for may be slow to make: the first ones speak for the rest
        count = len(prompts) if isinstance(prompts.prompts, list) else _NUM_CHECKED
        max_tokens = config.sampling.max_tokens
        longest = check_context(
            prompts, count, max_tokens=max_tokens, max_context_tokens=limit, what=what
        )
        check_budget(config, longest, max_context_tokens=limit)
    learner = make_learner(
        config,
        algorithm,
        source=source,
        weights=start.weights,
        dtype=dtype,
        ranks=ranks,
        kind=LeadingLearner if ranks.count > 1 else Learner,
    )
    if start.trainer_state is not None:
        learner.load_state_dict(start.trainer_state)
    _take_weights(decoder, learner, is_resumed=start.trainer_state is not None)
    run_dir = Path(config.run_dir)
    if goes_on_in_place(config):
        cut_unkept_steps(config, start.state)
    tracker = stack.enter_context(
        Tracker(
            config.tracking,
            run_dir,
            asdict(config),
            total_steps=config.trainer.num_steps,
            names={**option_names(config), "version": version(), "commit": commit()},
            resumed_from=Path(config.resume_from) if config.resume_from else None,
        )
    )
    pool = stack.enter_context(_pool(config, task))
    fleet = _fleet(config, decoder, tokenizer, start, stack, stop or StopSignal())
    fleet.load_state_dict(start.fleet_state)
    collector = Collector(fleet, pool)
    stack.callback(collector.close)
    answers = None
    if algorithm.needs.is_supervised:
        answers = Demonstrations(
            tokenizer,
            max_tokens=config.sampling.max_tokens,
            end_of_reply=loaded.ends.end_of_reply,
        )
        for index in range(min(len(train_prompts), _NUM_CHECKED)):
            answers(train_prompts[index][0])
    served = ServedFiles(
        model=config.model,
        task=config.task,
        sampling=config.sampling,
        tokenizer=tokenizer,
        eos_token_ids=loaded.ends.token_ids,
        example=train_prompts[0][0],
    )
    parts = Parts(
        train_prompts=train_prompts,
        held_out_prompts=held_out_prompts,
        fleet=fleet,
        collector=collector,
        learner=learner,
        checkpointer=Checkpointer(
            run_dir,
            source=source,
            keep=config.checkpoint.keep,
            grace_seconds=config.checkpoint.grace_seconds,
            write_served=served.write,
        ),
        tracker=tracker,
        answers=answers,
    )
    plan = _plan(config, algorithm.needs, task, decoder, train_prompts.lengths(_NUM_CHECKED))
    plan["ends at"] = loaded.ends.description
    if config.sampling.stop:  # as they were understood: a newline, not a backslash and an n
        plan["stops before"] = ", ".join(repr(text) for text in config.sampling.stop)
    plan |= first_prompt_plan(train_prompts)
    if config.resume_from:
        plan |= resume_plan(config, start.state)
    if ranks.count > 1:
        plan["processes"] = (
            f"{ranks.count} train, each {_part(config.trainer)}; the first rolls out{_whereabouts(config)}"
        )
    loop = TrainLoop(
        config,
        parts,
        start.state,
        max_resample_batches=algorithm.needs.max_resample_batches,
        stop=stop,
    )
    return Run(loop=loop, tracker=tracker, plan=plan, num_parameters=_num_parameters(decoder))


def assemble_follower(config: TrainConfig, ranks: Ranks) -> Follower:
    """What a rank behind the first needs.

    Raises:
        ValueError: a user's mistake, on this rank or another.
    """
    try:
        algorithm = make_algorithm(config.algorithm, max_tokens=config.sampling.max_tokens)
        check_config(config, algorithm.needs)
        check_ranks(config, algorithm.needs, ranks.count)
        source = resolve_model(config.model)
        start = _start(config, source)
    except ValueError as error:
        ranks.check(str(error))
        raise
    dtype = torch_dtype(config.model.dtype, "cpu")
    learner = make_learner(
        config, algorithm, source=source, weights=start.weights, dtype=dtype, ranks=ranks
    )
    if start.trainer_state is not None:
        learner.load_state_dict(start.trainer_state)
    return Follower(learner, ranks)


def _start(config: TrainConfig, source: Path) -> Checkpoint:
    if config.resume_from:
        checkpoint = load_checkpoint(Path(config.resume_from))
        _check_architecture(config.resume_from, checkpoint.weights, source)
        return checkpoint
    return Checkpoint(weights=source, state=RunState(policy_version=0, accepted_groups=0))


def _check_architecture(resume_from: str, weights: Path, source: Path) -> None:
    theirs, ours = asdict(read_spec(weights)), asdict(read_spec(source))
    # where completions end is a matter of taste
    names = [n for n in ours if theirs[n] != ours[n] and n != "eos_token_ids"]
    if names:
        differences = ", ".join(f"{n} {theirs[n]} instead of {ours[n]}" for n in names)
        raise ValueError(
            f"resume_from must be a run of the model in `model`, got {resume_from!r} with {differences}; "
            "resume with that run's own model"
        )


@torch.no_grad()
def _take_weights(decoder: Decoder, learner: Learner, *, is_resumed: bool) -> None:
    """Let the engine begin with what the trainer has, which a checkpoint's weights must be already."""
    own = dict(decoder.hf_tensors())
    for name, tensor in learner.named_weights():
        if is_resumed and not torch.equal(own[name], tensor):
            raise ValueError(
                f"resume_from holds another {name} than its optimiser state gives in this run; keep model.path and "
                "model.dtype as they were (of adapters, model.path is the base)"
            )
        own[name].copy_(tensor)


def _fleet(
    config: TrainConfig,
    decoder: Decoder,
    tokenizer: Any,
    start: Checkpoint,
    stack: ExitStack,
    stop: StopSignal,
) -> Fleet:
    """Starts the fleet of the run; `stack` ends it."""
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


def _whereabouts(config: TrainConfig) -> str:
    """Of the ranks behind the first, where the run started them."""
    if config.trainer.num_processes == 1:
        return ""
    return f", the others are on Ray, {config.fleet.address or 'on this machine'}"


def _part(trainer: TrainerConfig) -> str:
    """What of the trained weights is on each rank."""
    if trainer.backend is TrainerBackend.deepspeed:
        return f"as ZeRO {trainer.zero_stage} shards it"
    return "with a shard" if trainer.data_parallel is DataParallel.fsdp2 else "with a copy"


def _pool(config: TrainConfig, task: Task) -> ScorerPool:
    reward = config.reward
    return ScorerPool(
        random_score if config.mode is RunMode.train_only else task.scorer,
        num_workers=reward.num_workers,
        time_limit_seconds=reward.time_limit_seconds,
        memory_limit_gb=reward.memory_limit_gb,
    )


def _num_parameters(decoder: Decoder) -> int:
    return sum(parameter.numel() for parameter in decoder.parameters())


def _num_trained(config: TrainConfig, decoder: Decoder) -> int:
    """Parameters of the policy that have a gradient."""
    if config.trainer.lora.rank:
        return count_adapter_parameters(decoder, config.trainer.lora)
    return _num_parameters(decoder)


def _plan(
    config: TrainConfig, needs: Needs, task: Task, decoder: Decoder, lengths: Sequence[int]
) -> dict[str, str]:
    """What the run will use; memory in GB (10^9 bytes)."""
    weight = decoder.embed_tokens
    num_parameters = _num_parameters(decoder)
    fleet = config.fleet
    num_engines, engines = 1, "one engine, in this process"
    if isinstance(fleet, RayFleetConfig):
        num_engines = fleet.num_workers
        engines = (
            f"{num_engines} workers on Ray, {fleet.address or 'on this machine'}, "
            f"{fleet.threads_per_worker} threads each"
        )
    # trainer's, engines' and their shadows, one for workers that join; a critic's; a reference's, taking a teacher to be as large
    num_replicas = 2 * num_engines + int(isinstance(fleet, RayFleetConfig))
    copies = 2 if config.mode is RunMode.train_only else 1 + num_replicas
    num_critics = int(needs.critic is not None)
    # adapters keep their base beside the merged weights
    copies += (
        num_critics
        + int(needs.reference)
        + int(bool(needs.teacher))
        + int(config.trainer.lora.rank > 0)
    )
    weights_gb = copies * num_parameters * weight.itemsize / 1e9
    num_trained = _num_trained(config, decoder)
    # fp32 gradient and two AdamW moments, and masters where the compute type is narrower
    tensors = 3 if weight.itemsize >= 4 else 4
    optimizer_gb = (num_critics * num_parameters + num_trained) * 4 * tensors / 1e9
    optimizer_gb += num_trained * 4 * int(config.trainer.ema_decay > 0) / 1e9
    num_spare = config.num_spare_rollouts
    spare = f", the first to end of {config.group_size + num_spare}," if num_spare else ""
    trained = f", {num_trained / 1e6:.2f} M trained" if num_trained < num_parameters else ""
    return {
        "model": f"{num_parameters / 1e6:.1f} M parameters{trained}, {str(weight.dtype).removeprefix('torch.')}",
        "task": f"{task.name}: {len(task.train):,} prompts to train on (mean {sum(lengths) / len(lengths):.0f} "
        f"tokens), {len(task.held_out):,} held out",
        "batch": f"{config.num_prompts_per_step} prompts x {config.group_size} rollouts{spare} of at most "
        f"{config.sampling.max_tokens} tokens",
        "memory": f"weights {weights_gb:.2f} GB, optimizer {optimizer_gb:.2f} GB, "
        f"KV cache up to {num_engines * config.engine.kv_cache_gb:.2f} GB, and activations",
        "fleet": engines,
        "run directory": config.run_dir,
    }
