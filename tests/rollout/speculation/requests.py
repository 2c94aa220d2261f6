"""Request states without an engine."""

from rollout.core import Request, RequestState, SampleKey, SamplingParams

__all__ = ["make_state"]


def make_state(request_id, prompt, output=(), *, max_tokens=100, sample_index=0, **params):
    state = RequestState.of(
        Request(
            request_id=request_id,
            token_ids=tuple(prompt),
            params=SamplingParams(max_tokens=max_tokens, **params),
            key=SampleKey(0, 0, sample_index),
        )
    )
    state.token_ids += output
    state.num_computed = len(state.token_ids) - 1
    return state
