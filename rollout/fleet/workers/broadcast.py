"""Sends updates from the trainer to workers: a thread that sends, and a group that is made again when its members change."""

import logging
from collections.abc import Mapping, Sequence
from threading import Thread

from rollout.fleet.workers.process import Place
from rollout.weights.transport.rendezvous import CollectiveError
from rollout.weights.transport.sender import CollectiveSender
from rollout.weights.update import WeightUpdate

__all__ = ["Broadcast"]

logger = logging.getLogger("paceline")


class Broadcast:
    """Sends in a thread while the caller continues. Each worker reports what became of its transfer.

    Args:
        host: name or address at which workers reach this process.
    """

    def __init__(self, host: str) -> None:
        self._sender = CollectiveSender(host=host)
        self._members: tuple[str, ...] = ()
        """Members of the group; empty if there is none, or its last transfer failed or is under way."""
        self._generation = -1
        self._receivers: tuple[str, ...] = ()
        """Receivers of the last transfer."""
        self._thread: Thread | None = None

    def begin(self, worker_ids: Sequence[str], update: WeightUpdate) -> Mapping[str, Place]:
        """Begin to send; returns the place of each worker in the transfer. First waits for the previous transfer to end."""
        self._join()
        is_new = self._members != tuple(worker_ids)
        self._members, self._receivers = (), tuple(worker_ids)
        self._generation += is_new
        arguments = (update, tuple(worker_ids), is_new)
        self._thread = Thread(target=self._send, args=arguments, name="weights", daemon=True)
        self._thread.start()
        size = len(worker_ids) + 1
        return {
            worker_id: Place(
                address=self._sender.address, rank=rank, size=size, generation=self._generation
            )
            for rank, worker_id in enumerate(worker_ids, start=1)
        }

    def lose(self, worker_id: str) -> None:
        """Notes that a worker is gone: a transfer that waits for it to join fails now, not at its deadline."""
        is_sending = self._thread is not None and self._thread.is_alive()
        if is_sending and worker_id in self._receivers:
            self._sender.lose(self._receivers.index(worker_id) + 1, self._generation)

    def close(self) -> None:
        """Waits for the transfer under way, which has a deadline, and leaves the group."""
        self._join()
        self._sender.leave()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _send(self, update: WeightUpdate, worker_ids: tuple[str, ...], is_new: bool) -> None:
        try:
            if is_new:
                self._sender.rebuild(len(worker_ids), self._generation)
            self._sender.send(update)
        except CollectiveError as error:
            logger.warning("%s", error)
        else:
            self._members = worker_ids
