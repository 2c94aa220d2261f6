import pytest

from rollout.core import FinishReason
from rollout.fleet.cluster.leases import LeaseBook
from tests.rollout.fleet.cluster.simulated import make_request

LENGTH, ABORTED = FinishReason.LENGTH, FinishReason.ABORTED


def make_book(*request_indices: int) -> LeaseBook:
    book = LeaseBook()
    for index in request_indices:
        book.open(make_request(0, index, num_tokens=4))
    return book


def counts(book: LeaseBook) -> tuple[int, int, int, int, int]:
    """issued, running, finished, rejected, cancelled."""
    book.check()
    return (book.issued, book.running, book.finished, book.rejected, book.cancelled)


def test_a_request_is_counted_once_from_its_opening_to_its_answer():
    book = make_book(0, 1, 2)
    assert counts(book) == (3, 3, 0, 0, 0)
    lease = book.grant("0/0", "a", deadline=5.0)
    assert (lease.attempt, book.holders("0/0")) == (1, {"a"})
    assert book.close("0/0", LENGTH) == [lease]
    book.close("0/1", FinishReason.REJECTED)
    book.close("0/2", ABORTED)
    assert counts(book) == (3, 0, 1, 1, 1)
    assert not book.is_open("0/0")


def test_a_name_may_come_again_only_when_its_request_is_answered_and_old_leases_do_not_answer_it():
    book = make_book(0)
    with pytest.raises(ValueError, match="request_id must be new, got '0/0'"):
        book.open(make_request(0, 0, num_tokens=4))
    old = book.grant("0/0", "a", deadline=5.0)
    book.close("0/0", LENGTH)
    book.open(make_request(0, 0, num_tokens=4))
    new = book.grant("0/0", "a", deadline=5.0)
    assert (book.find(old.lease_id), book.find(new.lease_id)) == (None, new)


def test_an_overdue_lease_is_told_once_and_stays_valid_beside_the_next():
    book = make_book(0)
    first = book.grant("0/0", "a", deadline=5.0)
    assert book.take_overdue(4.9) == []
    assert book.take_overdue(5.0) == [first]
    assert book.take_overdue(9.0) == []
    second = book.grant("0/0", "b", deadline=12.0)
    assert (second.attempt, book.num_reissued) == (2, 1)
    assert book.find(first.lease_id) is first
    assert book.close("0/0", LENGTH) == [first, second]
    book.discard(LENGTH)
    book.discard(ABORTED)  # as it was told to
    assert book.num_discarded == 1
    assert book.take_overdue(99.0) == []
    assert counts(book) == (1, 0, 1, 0, 0)


def test_a_lease_can_be_given_more_time():
    book = make_book(0)
    lease = book.grant("0/0", "a", deadline=5.0)
    book.extend(lease, deadline=8.0)
    assert book.take_overdue(7.0) == []
    assert book.take_overdue(8.0) == [lease]


def test_a_lease_given_back_orphans_its_request_only_if_nobody_else_holds_it():
    book = make_book(0)
    first = book.grant("0/0", "a", deadline=5.0)
    second = book.grant("0/0", "b", deadline=5.0)
    assert not book.give_back(first)
    assert book.give_back(second)
    assert (book.of_worker("a"), book.of_worker("b")) == ([], [])
    assert counts(book) == (1, 1, 0, 0, 0)


def test_cancelling_names_whom_to_tell_and_counts_when_it_is_answered():
    book = make_book(0)
    lease = book.grant("0/0", "a", deadline=5.0)
    assert not book.is_cancelled("0/0")
    assert book.cancel("0/0") == [lease]
    assert book.is_cancelled("0/0")
    assert counts(book) == (1, 1, 0, 0, 0)
    book.close("0/0", ABORTED)
    assert counts(book) == (1, 0, 0, 0, 1)


def test_books_that_do_not_close_are_an_error_with_the_counts():
    book = make_book(0)
    book.issued += 1
    with pytest.raises(RuntimeError, match="2 issued, 1 running, 0 finished"):
        book.check()
