"""Inputs of the comparison that come from a training run: its past rollouts, and the prompts they answer."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl.runs.checkpoint import load_checkpoint
from rl.trainer.collect.encoded_prompts import EncodedPrompts

__all__ = ["answered_prompts", "mean_tokens", "past_rollouts"]

_DRAFTER = "SuffixDrafter"


def past_rollouts(run_dir: Path) -> Mapping[str, Any]:
    """Return the past rollouts that the speculator of a run's newest checkpoint kept.

    Raises:
        ValueError: no checkpoint, or none with past rollouts.
    """
    if not (run_dir / "weights").is_dir():
        raise ValueError(
            f"history_from must be a run directory with a checkpoint, got {str(run_dir)!r}"
        )
    past = load_checkpoint(run_dir).fleet_state.get("speculation", {})
    if not past.get(_DRAFTER, {}).get("rollouts"):
        raise ValueError(
            f"history_from must be a run that kept its rollouts, and {str(run_dir)!r} did not: train with "
            "engine.speculation.drafter=auto, or leave history_from out to make the first epoch here"
        )
    return past


def mean_tokens(past: Mapping[str, Any]) -> float:
    """Return the mean number of tokens of a past rollout."""
    lengths = [len(token_ids) for *_, token_ids in past[_DRAFTER]["rollouts"]]
    return sum(lengths) / len(lengths)


def answered_prompts(
    past: Mapping[str, Any], prompts: EncodedPrompts
) -> Callable[[int], Sequence[int]]:
    """Return a function from i to the token ids of the i-th prompt with past rollouts, in the order of the prompts.

    The returned function raises a ValueError if fewer prompts have past rollouts.
    """
    known = {tuple(prompt) for prompt, *_ in past[_DRAFTER]["rollouts"]}
    found: list[Sequence[int]] = []
    indices = iter(range(len(prompts)))

    def prompt(i: int) -> Sequence[int]:
        while len(found) <= i:
            index = next(indices, None)
            if index is None:
                raise ValueError(
                    f"history_from must have rollouts of {i + 1} of the task's prompts or more, but has rollouts of {len(found)}; "
                    "give the task of that run, lower concurrency, or leave out tail"
                )
            token_ids = prompts[index][1]
            if tuple(token_ids) in known:
                found.append(token_ids)
        return found[i]

    return prompt
