from dataclasses import replace

import pytest

from rollout.core import Request
from rollout.fleet.cluster.leases import Lease
from rollout.fleet.cluster.lengths import LengthHistory
from rollout.fleet.cluster.router import Capacity, Router
from tests.rollout.fleet.cluster.simulated import make_request

BIG = Capacity(num_blocks=1000, block_size=16, max_requests=100)


def make_router(**capacities: Capacity) -> Router:
    router = Router(LengthHistory())
    for worker_id, capacity in (capacities or {"a": BIG, "b": BIG}).items():
        router.add_worker(worker_id, capacity)
    return router


def prompt(length: int) -> tuple[int, ...]:
    return tuple(range(length))


def group(group_id: int, *, size: int, num_tokens: int = 10, length: int = 16) -> list[Request]:
    return [
        make_request(group_id, i, num_tokens=num_tokens, prompt=prompt(length)) for i in range(size)
    ]


def place(router: Router, *requests: Request) -> dict[str, str]:
    """Worker by request, in the order of placement."""
    for request in requests:
        router.enqueue(request)
    return {p.request.request_id: p.worker_id for p in router.place()}


def end(router: Router, request: Request, worker_id: str) -> None:
    router.ended(Lease(lease_id=0, request=request, worker_id=worker_id, attempt=1))


def test_work_is_shared_by_measured_speed():
    router = make_router()
    router.measured("a", tokens_per_second=300.0, num_sampled=0)
    router.measured("b", tokens_per_second=100.0, num_sampled=0)
    placed = place(router, *(group(g, size=1, num_tokens=100)[0] for g in range(40)))
    assert sum(worker == "a" for worker in placed.values()) == 30


def test_the_unmeasured_are_taken_to_be_as_fast_as_the_others():
    router = make_router()
    router.measured("a", tokens_per_second=1.0, num_sampled=0)
    placed = place(router, *(group(g, size=1)[0] for g in range(10)))
    assert sum(worker == "a" for worker in placed.values()) == 5


def test_siblings_stay_together_until_that_costs_more_time_than_it_saves_work():
    # a prompt of 400 is the work of 100 decoded tokens, of 10 siblings
    placed = place(make_router(), *group(0, size=11, length=400))
    assert set(placed.values()) == {"a"}
    placed = place(make_router(), *group(0, size=40, length=400))
    assert list(placed.values())[11] == "b"
    assert sum(worker == "a" for worker in placed.values()) == 20
    placed = place(make_router(), *group(0, size=8, length=4))
    assert sum(worker == "a" for worker in placed.values()) == 4


def test_after_an_update_no_prompt_is_cached():
    router = make_router()
    first, second = group(0, size=2, length=400, num_tokens=1)
    assert place(router, first) == {"0/0": "a"}
    router.forget_prefixes()
    assert place(router, second) == {"0/1": "b"}


def test_what_fits_nowhere_waits_until_something_ends():
    tight = Capacity(num_blocks=4, block_size=16, max_requests=100)  # two requests of 2 blocks
    router = make_router(a=tight)
    requests = [group(g, size=1, num_tokens=16)[0] for g in range(3)]
    assert place(router, *requests) == {"0/0": "a", "1/0": "a"}
    assert router.num_waiting == 1
    end(router, requests[0], "a")
    assert place(router) == {"2/0": "a"}
    assert router.num_waiting == 0


def test_no_worker_gets_more_requests_than_it_decodes_at_once():
    router = make_router(a=replace(BIG, max_requests=3))
    place(router, *group(0, size=5))
    assert router.num_waiting == 2


def test_what_would_not_even_fit_an_idle_worker_is_its_engines_to_reject():
    tiny = Capacity(num_blocks=1, block_size=16, max_requests=1)
    assert place(make_router(a=tiny), *group(0, size=1, num_tokens=500)) == {"0/0": "a"}


def test_the_longest_expected_go_first_and_those_begun_elsewhere_before_all():
    lengths = LengthHistory()
    router = Router(lengths)
    for tokens, length in ((prompt(1), 5), (prompt(2), 50), (prompt(3), 20)):
        lengths.add(tokens, length)
    requests = [make_request(i, 0, num_tokens=100, prompt=prompt(i)) for i in (1, 2, 3)]
    for request in requests:
        router.enqueue(request)
    router.enqueue(make_request(4, 0, num_tokens=1), is_reissued=True)
    router.enqueue(replace(make_request(5, 0, num_tokens=1), priority=1))
    router.add_worker("a", BIG)
    assert list(place(router)) == ["5/0", "4/0", "2/0", "3/0", "1/0"]


def test_tokens_that_are_sampled_already_are_not_queued_any_more():
    router = make_router()
    place(router, *group(0, size=1, num_tokens=100, length=4))
    assert router.queued_tokens("a") == pytest.approx(101.0)
    router.measured("a", tokens_per_second=10.0, num_sampled=90)
    assert router.queued_tokens("a") == pytest.approx(11.0)


def test_a_withdrawn_request_is_not_placed_and_a_worker_can_be_ruled_out():
    router = make_router()
    first, second = group(0, size=2)
    router.enqueue(first)
    assert router.withdraw("0/0")
    assert not router.withdraw("0/0")
    assert place(router) == {}
    placement = router.place_one(second, excluding={"a"})
    assert placement is not None
    assert placement.worker_id == "b"
    assert router.place_one(first, excluding={"a", "b"}) is None


def test_lengths_are_a_mean_per_prompt_and_the_oldest_prompt_is_forgotten():
    lengths = LengthHistory(max_prompts=2)
    assert lengths.expected(prompt(1), max_tokens=64) == 64
    lengths.add(prompt(1), 10)
    lengths.add(prompt(1), 20)
    lengths.add(prompt(2), 40)
    assert lengths.expected(prompt(1), max_tokens=64) == 15
    assert lengths.expected(prompt(1), max_tokens=12) == 12
    lengths.add(prompt(3), 50)
    overall = (10 + 20 + 40 + 50) / 4
    assert lengths.expected(prompt(1), max_tokens=64) == pytest.approx(overall)
    heir = LengthHistory()
    heir.load_state_dict(lengths.state_dict())
    assert heir.expected(prompt(2), max_tokens=64) == 40
    assert heir.state_dict() == lengths.state_dict()
