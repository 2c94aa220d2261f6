"""Plan of a run: its model, task, batch, memory and fleet, in lines for people."""

from collections.abc import Sequence

from rl.algorithms.base.algorithm import Needs
from rl.config import RunMode, TrainConfig
from rl.tasks.task import Task
from rl.trainer.config import DataParallel, TrainerBackend, TrainerConfig
from rl.trainer.weights.lora import count_adapter_parameters
from rollout.config import RayFleetConfig
from rollout.models.decoder import Decoder

__all__ = ["make_plan", "num_parameters", "processes_plan"]


def processes_plan(config: TrainConfig, count: int) -> dict[str, str]:
    """Describe the trainer's processes and the share of each; empty for one process."""
    if count == 1:
        return {}
    return {
        "processes": f"{count} train, each {_part(config.trainer)}; the first also runs the loop{_whereabouts(config)}"
    }


def _whereabouts(config: TrainConfig) -> str:
    """Describe where the run started the other ranks."""
    if config.trainer.num_processes == 1:
        return ""
    return f", the others are on Ray, {config.fleet.address or 'on this machine'}"


def _part(trainer: TrainerConfig) -> str:
    """Describe the part of the trained weights that each rank has."""
    if trainer.backend is TrainerBackend.deepspeed:
        return f"as ZeRO {trainer.zero_stage} shards it"
    return "with a shard" if trainer.data_parallel is DataParallel.fsdp2 else "with a copy"


def num_parameters(decoder: Decoder) -> int:
    """Count the parameters of the policy."""
    return sum(parameter.numel() for parameter in decoder.parameters())


def _num_trained(config: TrainConfig, decoder: Decoder) -> int:
    """Count the trained parameters of the policy."""
    if config.trainer.lora.rank:
        return count_adapter_parameters(decoder, config.trainer.lora)
    return num_parameters(decoder)


def make_plan(
    config: TrainConfig, needs: Needs, task: Task, decoder: Decoder, lengths: Sequence[int]
) -> dict[str, str]:
    """Describe the model, task, batch, memory in GB (10^9 bytes) and fleet of a run.

    Args:
        config: of the run.
        needs: of its algorithm.
        task: the prompts and their scorer.
        decoder: the policy.
        lengths: tokens of the first training prompts.
    """
    weight = decoder.embed_tokens
    count = num_parameters(decoder)
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
    weights_gb = copies * count * weight.itemsize / 1e9
    num_trained = _num_trained(config, decoder)
    # fp32 gradient and two AdamW moments, and masters where the compute type is narrower
    tensors = 3 if weight.itemsize >= 4 else 4
    optimizer_gb = (num_critics * count + num_trained) * 4 * tensors / 1e9
    optimizer_gb += num_trained * 4 * int(config.trainer.ema_decay > 0) / 1e9
    num_spare = config.num_spare_rollouts
    spare = f", the first to end of {config.group_size + num_spare}," if num_spare else ""
    trained = f", {num_trained / 1e6:.2f} M trained" if num_trained < count else ""
    return {
        "model": f"{count / 1e6:.1f} M parameters{trained}, {str(weight.dtype).removeprefix('torch.')}",
        "task": f"{task.name}: {len(task.train):,} prompts to train on (mean {sum(lengths) / len(lengths):.0f} "
        f"tokens), {len(task.held_out):,} held out",
        "batch": f"{config.num_prompts_per_step} prompts x {config.group_size} rollouts{spare} of at most "
        f"{config.sampling.max_tokens} tokens",
        "memory": f"weights {weights_gb:.2f} GB, optimizer {optimizer_gb:.2f} GB, "
        f"KV cache up to {num_engines * config.engine.kv_cache_gb:.2f} GB, and activations",
        "fleet": engines,
        "run directory": config.run_dir,
    }
