"""What a run starts from: the model, or another run's latest checkpoint."""

from dataclasses import asdict
from pathlib import Path

import torch

from rl.checkpoint import Checkpoint, RunState, load_checkpoint
from rl.config import TrainConfig
from rl.trainer.learn.learner import Learner
from rollout.models.decoder import Decoder
from rollout.models.spec import read_spec

__all__ = ["start_of", "take_weights"]


def start_of(config: TrainConfig, source: Path) -> Checkpoint:
    """Load the checkpoint that the run goes on from, or make one of a new run.

    Raises:
        ValueError: the checkpoint is of another model.
    """
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
def take_weights(decoder: Decoder, learner: Learner, *, is_resumed: bool) -> None:
    """Copy the trainer's weights to the engine's decoder.

    Raises:
        ValueError: the checkpoint's weights are not those that its optimiser state gives.
    """
    own = dict(decoder.hf_tensors())
    for name, tensor in learner.named_weights():
        if is_resumed and not torch.equal(own[name], tensor):
            raise ValueError(
                f"resume_from holds another {name} than its optimiser state gives in this run; keep model.path and "
                "model.dtype as they were (of adapters, model.path is the base)"
            )
        own[name].copy_(tensor)
