from rollout.fleet.cluster.health import Health, Watchdog


def test_a_worker_is_silent_when_its_loop_does_not_turn_whatever_it_says():
    health = Health()
    health.watch("a", 0.0, limit_seconds=5.0)
    health.heard("a", 1, 3.0)
    assert health.silent(8.0) == []
    health.heard("a", 1, 8.0)  # it answers, and has not moved
    assert health.silent(8.1) == ["a"]
    assert health.seconds_silent("a", 8.1) == 8.1 - 3.0
    health.heard("a", 2, 9.0)
    assert health.silent(9.0) == []
    health.forget("a")
    health.heard("a", 3, 10.0)
    assert health.silent(99.0) == []


def test_the_watchdog_speaks_when_nothing_moved_for_long_and_again_as_long_after():
    watchdog = Watchdog(patience_seconds=30.0)
    watchdog.moved(10.0)
    assert watchdog.line(39.0, ["a is slow"]) is None
    assert watchdog.line(41.0, ["a is slow"]) == "nothing has come for 31 s: a is slow"
    assert watchdog.line(42.0, ["a is slow"]) is None
    assert watchdog.line(71.0, ["a", "b"]) == "nothing has come for 61 s: a; b"
    watchdog.moved(72.0)
    assert watchdog.line(101.0, ["a"]) is None
