from dataclasses import replace
from typing import ClassVar

import pytest

from rl.environments.contract import Reply
from rl.environments.single_turn import SingleTurn
from rl.rewards.outcome import OutcomeKind, ScoreOutcome
from rl.rollouts import NO_VERSION, Purpose, RolloutEnd, RolloutGroup, Turn
from rl.tasks.prompts import Prompt
from rl.trainer.collect.collector import Collector, count_unscored
from rl.trainer.collect.evaluation import evaluate
from rollout.core import Completion, FinishReason, Request, SamplingParams
from rollout.fleet.base import FleetStatus
from tests.rl.trainer.rollout_factory import group, rollout

PROMPT = Prompt(
    prompt_id=3,
    messages=(),
    question="1 + 1 =",
    answer="2",
    row={"question": "1 + 1 =", "answer": "2"},
)


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


class OneReply(SingleTurn):
    """Replies once with two tokens, then is done."""

    def __init__(self) -> None:
        self.has_replied = False

    def reply(self, turn: Turn) -> Reply:
        if self.has_replied:
            return Reply(is_done=True)
        self.has_replied = True
        return said(50, 51)


def said(*token_ids: int) -> Reply:
    return Reply(messages=({"role": "user", "content": " ".join(map(str, token_ids))},))


def render(messages) -> list[int]:
    """The numbers that the messages consist of."""
    return [int(word) for message in messages for word in message["content"].split()]


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
    collector = Collector(fleet, ScriptedPool())
    begin(collector, group_size=3)
    assert [collector.poll(0.1) for _ in range(2)] == [[], []]
    (made,) = collector.poll(0.1)
    assert [r.reward for r in made.rollouts] == [0.0, 1.0, 2.0]
    assert [r.log.token_ids for r in made.rollouts] == [[1, 2, 100], [1, 2, 101], [1, 2, 102]]
    assert collector.is_idle


def test_requests_carry_the_sample_key_of_their_rollout():
    fleet = ScriptedFleet()
    collector = Collector(fleet, ScriptedPool())
    begin(collector, group_id=5)
    keys = [(r.key.seed, r.key.group_id, r.key.sample_index) for r in fleet.seen]
    assert keys == [(9, 5, 0), (9, 5, 1)]
    assert len({r.request_id for r in fleet.seen}) == 2


def test_an_environments_reply_continues_the_same_log_and_is_not_trained():
    fleet = ScriptedFleet()
    collector = Collector(fleet, ScriptedPool(), OneReply, render=render)
    begin(collector, group_size=1)
    (made,) = drain(collector)
    (only,) = made.rollouts
    assert only.log.token_ids == [1, 2, 100, 50, 51, 100]
    assert only.log.loss_mask == [False, False, True, False, False, True]
    assert only.log.policy_versions == [NO_VERSION, NO_VERSION, 7, NO_VERSION, NO_VERSION, 7]
    assert fleet.seen[1].token_ids == (1, 2, 100, 50, 51)


def test_an_unscored_sibling_completes_its_group_without_a_reward():
    collector = Collector(ScriptedFleet(), ScriptedPool())
    begin(collector, group_size=4)
    (made,) = drain(collector)
    assert [r.reward for r in made.rollouts] == [0.0, 1.0, 2.0, None]
    count, first = count_unscored([made])
    assert (count, first.message) == (1, "three")


def test_a_rejected_request_names_its_prompt_and_the_reason():
    collector = Collector(ScriptedFleet(FinishReason.REJECTED), ScriptedPool())
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

    other = Prompt(
        prompt_id=4, messages=(), question="?", answer="x", row={"question": "?", "answer": "x"}
    )
    seen = []
    result = evaluate(
        Collector(ScriptedFleet(), OneRight()),
        [(other, [1]), (PROMPT, [1, 2]), (PROMPT, [1])],
        params=SamplingParams(temperature=0),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [g.prompt.prompt_id for g in result.groups] == [4, 3, 3]
    assert (result.accuracy, result.scores, result.num_unscored) == (2 / 3, [0.0, 1.0, 1.0], 1)
    assert seen[-1] == (3, 3)


def test_an_unscored_group_is_counted_once_per_rollout():
    groups = [group(rollout([1], [2], reward=None), rollout([1], [3], reward=0.0))]
    assert count_unscored(groups)[0] == 1


def test_an_answer_that_is_given_is_a_group_of_one_that_is_scored_and_not_sampled():
    fleet = ScriptedFleet()
    collector = Collector(fleet, ScriptedPool())
    collector.demonstrate(PROMPT, [1, 2], text="2", answer_ids=[50, 9], group_id=4)
    (made,) = drain(collector)
    (only,) = made.rollouts
    assert (made.group_id, only.reward, only.text) == (4, 2.0, "2")
    assert only.log.token_ids == [1, 2, 50, 9]
    assert only.log.loss_mask == [False, False, True, True]
    assert set(only.log.policy_versions) == {NO_VERSION}
    assert fleet.seen == []


# --- environments


class World(SingleTurn):
    """Replies once; writes down what it is told, and gives rewards if it has any."""

    made: ClassVar[list["World"]] = []

    def __init__(self, *rewards: float) -> None:
        self.rewards = list(rewards)
        self.heard: list = []
        World.made.append(self)

    def start(self, row, seed):
        self.heard.append(("start", row["answer"], seed))
        return super().start(row, seed)

    def reply(self, turn: Turn) -> Reply:
        self.heard.append(("reply", turn.start, turn.stop, turn.text))
        reward = self.rewards.pop(0) if self.rewards else None
        return replace(said(50) if len(self.heard) == 2 else Reply(is_done=True), reward=reward)

    def end(self, reason: RolloutEnd) -> Reply:
        self.heard.append(("end", reason))
        return Reply(is_done=True, reward=self.rewards.pop(0) if self.rewards else None)

    def close(self) -> None:
        self.heard.append("close")


@pytest.fixture
def worlds():
    World.made.clear()
    return World.made


class RecordingPool(ScriptedPool):
    def __init__(self) -> None:
        self.jobs: list = []

    def submit(self, jobs):
        self.jobs += jobs
        return super().submit(jobs)


ASKED = Prompt(
    prompt_id=3,
    messages=({"role": "user", "content": "1 + 1 ="}, {"role": "assistant", "content": "= "}),
    question="1 + 1 =",
    answer="2",
    row={"question": "1 + 1 =", "answer": "2"},
)


def ask(collector: Collector, group_size: int = 1) -> RolloutGroup:
    params, purpose = SamplingParams(seed=9), Purpose.TRAINING
    collector.begin(
        ASKED, [1, 2], group_id=5, group_size=group_size, params=params, purpose=purpose
    )
    (made,) = drain(collector)
    return made


def test_an_environment_is_started_answered_and_closed_once_and_siblings_share_its_seed(worlds):
    made = ask(Collector(ScriptedFleet(), ScriptedPool(), World, render=render), group_size=2)
    for index, world in enumerate(worlds):
        turns = [("reply", 2, 3, str(index)), ("reply", 4, 5, str(index))]
        assert world.heard == [("start", "2", (9 << 32) + 5), *turns, "close"]
    assert [r.end for r in made.rollouts] == [RolloutEnd.DONE] * 2


def test_a_scorer_gets_the_last_text_and_the_whole_transcript(worlds):
    pool = RecordingPool()
    ask(Collector(ScriptedFleet(), pool, World, render=render))
    (job,) = pool.jobs
    assert job.completion == "0"
    assert job.row == ASKED.row
    assert job.transcript == [
        {"role": "user", "content": "1 + 1 ="},
        {"role": "assistant", "content": "= 0"},
        {"role": "user", "content": "50"},
        {"role": "assistant", "content": "0"},
    ]
    assert len(ASKED.messages) == 2, "the prompt's own messages are left alone"


def test_rewards_of_an_environment_are_summed_and_no_scorer_is_asked(worlds):
    pool = RecordingPool()
    made = ask(Collector(ScriptedFleet(), pool, lambda: World(0.25, 0.5), render=render))
    assert [r.reward for r in made.rollouts] == [0.75]
    assert pool.jobs == []


def test_a_turn_that_is_cut_off_ends_the_rollout_and_the_environment_may_still_judge_it(worlds):
    fleet = ScriptedFleet(FinishReason.LENGTH)
    made = ask(Collector(fleet, ScriptedPool(), lambda: World(0.125), render=render))
    assert worlds[0].heard[1:] == [("end", RolloutEnd.TURN_CUT), "close"]
    assert [(r.end, r.reward) for r in made.rollouts] == [(RolloutEnd.TURN_CUT, 0.125)]


def test_an_environment_that_goes_on_without_a_word_or_a_renderer_is_an_error_that_names_it(worlds):
    with pytest.raises(RuntimeError, match=r"World continued after turn 1 with 1 messages \(no "):
        ask(Collector(ScriptedFleet(), ScriptedPool(), World))

    class Mute(SingleTurn):
        def reply(self, turn):
            return Reply()

    with pytest.raises(RuntimeError, match="Mute continued after turn 1 with 0 messages"):
        ask(Collector(ScriptedFleet(), ScriptedPool(), Mute, render=render))


def test_environments_of_rollouts_that_never_end_are_closed_with_the_collector(worlds):
    collector = Collector(ScriptedFleet(), ScriptedPool(), World, render=render)
    begin(collector, group_size=2)
    collector.poll(0.1)
    collector.close()
    assert [world.heard[-1] for world in worlds] == ["close", "close"]
