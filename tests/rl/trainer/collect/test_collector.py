import pytest

from rl.rewards.outcome import OutcomeKind, ScoreOutcome
from rl.rollouts import NO_VERSION, Purpose, Rollout
from rl.tasks.prompts import Prompt
from rl.trainer.collect.collector import Collector, count_unscored
from rl.trainer.collect.evaluation import evaluate
from rollout.core import Completion, FinishReason, Request, SamplingParams
from rollout.fleet.base import FleetStatus
from tests.rl.trainer.rollout_factory import group, rollout

PROMPT = Prompt(prompt_id=3, messages=(), row={"question": "1 + 1 =", "answer": "2"})


class ScriptedFleet:
    """Answers one request per poll, newest first, with its own sample index as the token."""

    def __init__(self, reason: FinishReason = FinishReason.STOP) -> None:
        self.queue: list[Request] = []
        self.seen: list[Request] = []
        self.reason = reason

    def submit(self, requests):
        self.queue += requests
        self.seen += requests

    def poll(self, timeout_seconds):
        if not self.queue:
            return []
        request = self.queue.pop()
        index = request.key.sample_index
        return [
            Completion(
                request_id=request.request_id,
                token_ids=[100 + index],
                logprobs=[-0.5],
                policy_versions=[7],
                finish_reason=self.reason,
                text=str(index),
                message="too long",
            )
        ]

    def status(self):
        issued, running = len(self.seen), len(self.queue)
        return FleetStatus(
            issued=issued,
            running=running,
            finished=issued - running,
            rejected=0,
            cancelled=0,
            policy_version=7,
        )


class ScriptedPool:
    """Scores at once: the completion's number; a 3 is an error."""

    def submit(self, jobs):
        return ScriptedTicket(jobs)


class ScriptedTicket:
    def __init__(self, jobs) -> None:
        self.jobs = jobs

    def done(self):
        return True

    def wait(self, _timeout_seconds):
        return True

    def outcomes(self):
        return [
            ScoreOutcome(kind=OutcomeKind.ERROR, message="three")
            if job.completion == "3"
            else ScoreOutcome(kind=OutcomeKind.SCORE, score=float(job.completion))
            for job in self.jobs
        ]


class OneReply:
    """Replies once with two tokens, then is done."""

    def reply(self, made: Rollout):
        return [50, 51] if len(made.turns) == 1 else None


class Done:
    def reply(self, made: Rollout):
        return None


def begin(collector: Collector, group_id: int = 0, group_size: int = 2) -> None:
    collector.begin(
        PROMPT,
        [1, 2],
        group_id=group_id,
        group_size=group_size,
        params=SamplingParams(seed=9),
        purpose=Purpose.TRAINING,
    )


def drain(collector: Collector) -> list:
    groups = []
    while not collector.is_idle:
        groups += collector.poll(0.1)
    return groups


def test_a_group_is_complete_when_every_sibling_is_scored_and_siblings_keep_their_places():
    fleet = ScriptedFleet()
    collector = Collector(fleet, ScriptedPool(), Done())
    begin(collector, group_size=3)
    assert [collector.poll(0.1) for _ in range(2)] == [[], []]
    (made,) = collector.poll(0.1)
    assert [r.reward for r in made.rollouts] == [0.0, 1.0, 2.0]
    assert [r.token_ids for r in made.rollouts] == [[1, 2, 100], [1, 2, 101], [1, 2, 102]]
    assert collector.is_idle


def test_requests_carry_the_sample_key_of_their_rollout():
    fleet = ScriptedFleet()
    collector = Collector(fleet, ScriptedPool(), Done())
    begin(collector, group_id=5)
    keys = [(r.key.seed, r.key.group_id, r.key.sample_index) for r in fleet.seen]
    assert keys == [(9, 5, 0), (9, 5, 1)]
    assert len({r.request_id for r in fleet.seen}) == 2


def test_an_environments_reply_continues_the_same_log_and_is_not_trained():
    fleet = ScriptedFleet()
    collector = Collector(fleet, ScriptedPool(), OneReply())
    begin(collector, group_size=1)
    (made,) = drain(collector)
    (only,) = made.rollouts
    assert only.token_ids == [1, 2, 100, 50, 51, 100]
    assert only.loss_mask == [False, False, True, False, False, True]
    assert only.policy_versions == [NO_VERSION, NO_VERSION, 7, NO_VERSION, NO_VERSION, 7]
    assert fleet.seen[1].token_ids == (1, 2, 100, 50, 51)


def test_an_unscored_sibling_completes_its_group_without_a_reward():
    collector = Collector(ScriptedFleet(), ScriptedPool(), Done())
    begin(collector, group_size=4)
    (made,) = drain(collector)
    assert [r.reward for r in made.rollouts] == [0.0, 1.0, 2.0, None]
    count, first = count_unscored([made])
    assert (count, first.message) == (1, "three")


def test_a_rejected_request_names_its_prompt_and_the_reason():
    collector = Collector(ScriptedFleet(FinishReason.REJECTED), ScriptedPool(), Done())
    begin(collector)
    with pytest.raises(RuntimeError, match=r"prompt 3 was rejected: too long"):
        collector.poll(0.1)


def test_evaluation_keeps_the_order_of_the_prompts_and_counts_errors_as_wrong():
    class OneRight(ScriptedPool):
        def submit(self, jobs):
            outcomes = [
                ScoreOutcome(kind=OutcomeKind.SCORE, score=1.0)
                if job.row["answer"] == "2"
                else ScoreOutcome(kind=OutcomeKind.TIMEOUT, message="slow")
                for job in jobs
            ]
            ticket = ScriptedTicket([])
            ticket.outcomes = lambda: outcomes
            return ticket

    other = Prompt(prompt_id=4, messages=(), row={"question": "?", "answer": "x"})
    seen = []
    result = evaluate(
        Collector(ScriptedFleet(), OneRight(), Done()),
        [(other, [1]), (PROMPT, [1, 2]), (PROMPT, [1])],
        params=SamplingParams(temperature=0),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [g.prompt.prompt_id for g in result.groups] == [4, 3, 3]
    assert (result.accuracy, result.num_correct, result.num_unscored) == (2 / 3, 2.0, 1)
    assert seen[-1] == (3, 3)


def test_an_unscored_group_is_counted_once_per_rollout():
    groups = [group(rollout([1], [2], reward=None), rollout([1], [3], reward=0.0))]
    assert count_unscored(groups)[0] == 1


def test_an_answer_that_is_given_is_a_group_of_one_that_is_scored_and_not_sampled():
    fleet = ScriptedFleet()
    collector = Collector(fleet, ScriptedPool(), Done())
    collector.demonstrate(PROMPT, [1, 2], text="2", answer_ids=[50, 9], group_id=4)
    (made,) = drain(collector)
    (only,) = made.rollouts
    assert (made.group_id, only.reward, only.text) == (4, 2.0, "2")
    assert only.token_ids == [1, 2, 50, 9]
    assert only.loss_mask == [False, False, True, True]
    assert set(only.policy_versions) == {NO_VERSION}
    assert fleet.seen == []
