"""`Engine.generate`: from prompts in any form to completions, leaving an idle engine however it ends."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rollout.core import Completion, Request, SampleKey, SamplingParams
from rollout.interrupts import deferring_interrupts
from rollout.text.prompts import as_prompts, encode_prompts

if TYPE_CHECKING:
    from rollout.engine.engine import Engine

__all__ = ["generate"]


def generate(
    engine: "Engine", prompts: Any, params: SamplingParams | Sequence[SamplingParams] | None
) -> list[list[Completion]]:
    """See `Engine.generate`."""
    requests = make_requests(as_prompts(prompts), params, engine.tokenizer)
    finished: dict[str, Completion] = {}
    try:
        for request in requests:
            engine.add_request(request)
        while engine.has_unfinished:
            with deferring_interrupts():  # a step cut in two would leave its books open
                finished |= {c.request_id: c for c in engine.step()}
    except BaseException:
        for request in requests:
            engine.forget(request.request_id)
        raise
    groups: dict[int, list[Completion]] = {}
    for request in requests:
        groups.setdefault(request.key.group_id, []).append(finished[request.request_id])
    return list(groups.values())


def make_requests(
    prompts: Sequence[Any],
    params: SamplingParams | Sequence[SamplingParams] | None,
    tokenizer: Any,
) -> list[Request]:
    """A request per sample of each prompt, in order.

    Raises:
        ValueError: an empty prompt, or not as many params as prompts.
    """
    if params is None or isinstance(params, SamplingParams):
        each = [params or SamplingParams()] * len(prompts)
    else:
        each = list(params)
    if len(each) != len(prompts):
        raise ValueError(
            f"params must be one, or one per prompt: got {len(each)} for {len(prompts)} prompts"
        )
    wrong = [p for p in each if not isinstance(p, SamplingParams)]
    if wrong:
        raise ValueError(f"params must be SamplingParams, or one per prompt, got {wrong[0]!r}")
    encoded = encode_prompts(prompts, tokenizer)
    return [
        Request(
            request_id=f"{group_id}/{i}",
            token_ids=tuple(token_ids),
            params=p,
            key=SampleKey(p.seed, group_id, i),
        )
        for group_id, (token_ids, p) in enumerate(zip(encoded, each, strict=True))
        for i in range(p.n)
    ]
