import pytest
import torch

from rollout.config import DrafterKind, OnUpdate, SpeculationConfig
from rollout.core import FinishReason, Request
from rollout.fleet.base import FleetStatus
from rollout.fleet.inline import InlineFleet
from rollout.models.checkpoint import load_decoder
from rollout.weights.update import WeightUpdate, make_update
from tests.rollout.engine.engines import draws, make_engine, make_group, make_request, prompt, run

pytestmark = pytest.mark.usefixtures("one_thread")


def make_fleet(directory, **limits) -> InlineFleet:
    return InlineFleet(make_engine(directory, **limits))


def drain(fleet: InlineFleet) -> dict:
    answers = {}
    while fleet.status().running:
        for completion in fleet.poll(0.0):
            assert completion.request_id not in answers, "answered twice"
            answers[completion.request_id] = completion
        fleet.status().check()
    assert fleet.poll(10.0) == []
    return answers


def counts(fleet: InlineFleet) -> tuple[int, int, int, int, int]:
    """issued, running, finished, rejected, cancelled."""
    s = fleet.status()
    s.check()
    return (s.issued, s.running, s.finished, s.rejected, s.cancelled)


def update_from(directory, version: int) -> WeightUpdate:
    return make_update(version, load_decoder(directory, dtype=torch.float32).hf_tensors())


def batch() -> list[Request]:
    return [*make_group(0, prompt(20), size=3), make_request("greedy", prompt(70), temperature=0)]


# --- books


def test_an_idle_fleet_answers_nothing_and_its_books_are_empty(llama):
    fleet = make_fleet(llama, policy_version=3)
    assert fleet.poll(10.0) == []
    assert counts(fleet) == (0, 0, 0, 0, 0)
    assert fleet.status().policy_version == 3


def test_requests_are_answered_as_by_the_engine(llama):
    fleet = make_fleet(llama)
    fleet.submit(batch())
    assert draws(drain(fleet)) == draws(run(make_engine(llama), batch()))


def test_the_books_close_at_every_poll_whatever_happens_to_the_requests(llama):
    fleet = make_fleet(
        llama, num_blocks=9, max_requests=4, max_tokens_per_step=8, max_context_tokens=100
    )
    fleet.submit(make_group(0, prompt(20), size=4, max_tokens=5))
    fleet.submit([make_request("long", prompt(100)), make_request("large", prompt(99, start=1))])
    assert counts(fleet) == (6, 6, 0, 0, 0)
    answers = {c.request_id: c for c in fleet.poll(0.0)}
    assert counts(fleet) == (6, 5, 0, 1, 0)
    assert answers["long"].finish_reason is FinishReason.REJECTED
    fleet.cancel(["0/1"])
    assert counts(fleet) == (6, 5, 0, 1, 0)  # until it is answered
    answers |= {c.request_id: c for c in fleet.poll(0.0)}
    assert counts(fleet) == (6, 4, 0, 1, 1)
    assert answers["0/1"].finish_reason is FinishReason.ABORTED
    fleet.submit(make_group(7, prompt(30, start=2), size=3, max_tokens=40))
    answers |= drain(fleet)
    assert counts(fleet) == (9, 0, 7, 1, 1)
    assert len(answers) == 9


def test_a_poll_without_time_still_makes_one_step(llama):
    fleet = make_fleet(llama)
    fleet.submit([make_request("a", prompt(5), max_tokens=3)])
    assert [fleet.poll(0.0), fleet.poll(0.0)] == [[], []]
    (completion,) = fleet.poll(0.0)
    assert len(completion.token_ids) == 3
    assert fleet.engine.stats.num_steps == 3


def test_a_poll_with_time_returns_with_the_first_that_finish(llama):
    fleet = make_fleet(llama)
    fleet.submit(
        [make_request(str(i), prompt(5), group_id=i, max_tokens=n) for i, n in enumerate((9, 2, 2))]
    )
    assert {c.request_id for c in fleet.poll(600.0)} == {"1", "2"}
    assert [c.request_id for c in fleet.poll(600.0)] == ["0"]


def test_cancelled_requests_are_answered_as_aborted_with_what_they_have(llama):
    fleet = make_fleet(llama)
    whole = run(make_engine(llama), batch())
    fleet.submit(batch())
    fleet.poll(0.0)
    fleet.poll(0.0)
    fleet.cancel([request.request_id for request in batch()])
    answers = drain(fleet)
    assert counts(fleet) == (4, 0, 0, 0, 4)
    for name, completion in answers.items():
        assert completion.finish_reason is FinishReason.ABORTED
        assert completion.token_ids == whole[name].token_ids[: len(completion.token_ids)]
    assert sum(len(c.token_ids) for c in answers.values()) > 0


def test_cancelling_what_is_finished_or_unknown_changes_no_book(llama):
    fleet = make_fleet(llama)
    fleet.submit([make_request("a", prompt(5))])
    drain(fleet)
    fleet.cancel(["a", "nobody"])
    assert fleet.poll(0.0) == []
    assert counts(fleet) == (1, 0, 1, 0, 0)


def test_a_refused_submission_is_not_booked(llama):
    fleet = make_fleet(llama)
    fleet.submit([make_request("a", prompt(5))])
    with pytest.raises(ValueError, match="request_id must be new, got 'a'"):
        fleet.submit([make_request("b", prompt(5)), make_request("a", prompt(6))])
    assert counts(fleet) == (2, 2, 0, 0, 0)
    assert sorted(drain(fleet)) == ["a", "b"]
    assert counts(fleet) == (2, 0, 2, 0, 0)


@pytest.mark.parametrize("how", ["cancelled", "rejected"])
def test_an_id_cannot_be_used_again_before_its_answer_is_out(llama, how):
    fleet = make_fleet(llama, max_context_tokens=32)
    fleet.submit([make_request("a", prompt(5 if how == "cancelled" else 40))])
    if how == "cancelled":
        fleet.cancel(["a"])
    with pytest.raises(ValueError, match="request_id must be new, got 'a'"):
        fleet.submit([make_request("a", prompt(5))])
    assert len(drain(fleet)) == 1
    fleet.submit([make_request("a", prompt(5))])
    assert drain(fleet)["a"].finish_reason is FinishReason.LENGTH
    assert fleet.status().issued == 2


def test_books_that_do_not_close_are_an_error_with_the_counts():
    status = FleetStatus(issued=5, running=1, finished=2, rejected=0, cancelled=1, policy_version=0)
    with pytest.raises(
        RuntimeError, match=r"lost or counted twice: .*issued=5, running=1, finished=2"
    ):
        status.check()


# --- weights


def test_an_update_moves_the_version_and_the_outputs(llama, other_llama):
    fleet = make_fleet(llama)
    fleet.submit(batch())
    before = drain(fleet)
    fleet.update_weights(update_from(other_llama, 1))
    assert fleet.status().policy_version == 1
    fleet.submit(batch())
    after = drain(fleet)
    assert draws(after) == draws(run(make_engine(other_llama), batch())) != draws(before)
    assert {v for c in before.values() for v in c.policy_versions} == {0}
    assert {v for c in after.values() for v in c.policy_versions} == {1}


def torn(update: WeightUpdate) -> WeightUpdate:
    update.tensors["model.norm.weight"].detach()[0] += 1
    return update


def incomplete(update: WeightUpdate) -> WeightUpdate:
    return make_update(update.version, list(update.tensors.items())[1:])


def assert_still_serves_the_old_version_and_takes_the_next(fleet, llama, other_llama) -> None:
    assert fleet.status().policy_version == 0
    fleet.submit(batch())
    assert draws(drain(fleet)) == draws(run(make_engine(llama), batch()))
    fleet.update_weights(update_from(other_llama, 1))
    assert fleet.status().policy_version == 1
    fleet.submit(batch())
    assert draws(drain(fleet)) == draws(run(make_engine(other_llama), batch()))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [(torn, RuntimeError, "differ from their manifest"), (incomplete, ValueError, "1 missing")],
)
def test_a_bad_update_leaves_the_old_version_serving_and_the_next_update_welcome(
    llama, other_llama, spoil, error, message
):
    fleet = make_fleet(llama)
    with pytest.raises(error, match=message):
        fleet.update_weights(spoil(update_from(other_llama, 1)))
    assert_still_serves_the_old_version_and_takes_the_next(fleet, llama, other_llama)


def test_what_has_begun_ends_with_the_old_weights_and_is_kept_for_the_next_poll(llama, other_llama):
    fleet = make_fleet(llama, max_requests=2)
    fleet.submit([make_request(name, prompt(5), group_id=i) for i, name in enumerate("abc")])
    fleet.poll(0.0)
    fleet.update_weights(update_from(other_llama, 1))
    assert counts(fleet) == (3, 3, 0, 0, 0), "nobody has been told of them yet"
    assert fleet.take_metrics()["rollout/drain_seconds"] > 0
    steps = fleet.engine.stats.num_steps
    assert {c.request_id for c in fleet.poll(0.0)} == {"a", "b"}
    assert fleet.engine.stats.num_steps == steps, "what is there is not held back by a step"
    versions = {name: set(c.policy_versions) for name, c in drain(fleet).items()}
    assert versions == {"c": {1}}


@pytest.mark.parametrize("on_update", [OnUpdate.keep, OnUpdate.recompute])
def test_an_update_that_waits_for_nobody_changes_the_version_of_the_next_token(
    llama, other_llama, on_update
):
    fleet = make_fleet(llama, on_update=on_update)
    fleet.submit([make_request("a", prompt(5))])
    fleet.poll(0.0)
    fleet.update_weights(update_from(other_llama, 1))
    assert "rollout/drain_seconds" not in fleet.take_metrics()
    assert drain(fleet)["a"].policy_versions == [0] + [1] * 7


def test_an_update_that_fails_while_it_waits_loses_no_answer(llama, other_llama, monkeypatch):
    fleet = make_fleet(llama)
    fleet.submit(batch())
    fleet.poll(0.0)

    def fail() -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(fleet.engine.weights._receiver, "commit", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            fleet.update_weights(update_from(other_llama, 1))
    assert draws(drain(fleet)) == draws(run(make_engine(llama), batch()))
    assert_still_serves_the_old_version_and_takes_the_next(fleet, llama, other_llama)


def test_an_old_version_is_refused(llama, other_llama):
    fleet = make_fleet(llama, policy_version=5)
    with pytest.raises(ValueError, match="newer than version 5, got 5"):
        fleet.update_weights(update_from(other_llama, 5))
    fleet.update_weights(update_from(other_llama, 6))
    assert fleet.status().policy_version == 6


# --- what it keeps and reports besides


def test_drafts_are_counted_since_the_last_call_and_their_history_is_kept(llama):
    config = SpeculationConfig(drafter=DrafterKind.suffix)
    fleet, heir = (make_fleet(llama, speculation=config) for _ in range(2))
    fleet.submit(batch())
    drain(fleet)
    assert fleet.take_metrics()["speculation/draft_seconds"] > 0
    assert fleet.take_metrics()["speculation/draft_seconds"] == 0
    kept = fleet.state_dict()
    assert len(kept["speculation"]["SuffixDrafter"]["rollouts"]) == 4
    heir.load_state_dict(kept)
    assert heir.state_dict() == kept


def test_without_a_drafter_there_is_nothing_to_keep_or_report(llama):
    fleet = make_fleet(llama)
    fleet.load_state_dict({"speculation": {"SuffixDrafter": {"rollouts": [[[1], 0, [2]]]}}})
    assert (fleet.take_metrics(), fleet.state_dict()) == ({}, {})
