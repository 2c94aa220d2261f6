"""Messages between the trainer and a scorer's process.

Blocks go to the worker: a length and a pickle. Lines come back: JSON between newlines, so that what a scorer writes to
our socket spoils no answer. A line counts only with the id of the job in hand and the worker's own pid.
"""

import json
import secrets
import socket
import struct
from dataclasses import dataclass
from json import dumps
from typing import Self

from rl.rewards.outcome import OutcomeKind, ScoreOutcome

__all__ = ["Reply", "new_job_id", "receive_block", "to_block"]

_START = "start"
_LENGTH = struct.Struct("!Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A worker's answer to one job."""

    job_id: str
    pid: int
    """The worker's."""
    outcome: ScoreOutcome
    is_shared: bool
    """Whether threads or children of this or an earlier job are left in the process."""
    is_last: bool
    """Whether the scorer changed the process in a way that cannot be undone."""

    @classmethod
    def of_start(cls, problem: str, *, pid: int) -> Self:
        """The answer to the scorer itself; `problem` is empty if it was loaded."""
        kind = OutcomeKind.ERROR if problem else OutcomeKind.SCORE
        outcome = ScoreOutcome(kind=kind, score=None if problem else 0.0, message=problem)
        return cls(job_id=_START, pid=pid, outcome=outcome, is_shared=False, is_last=False)

    def to_line(self) -> bytes:
        """Returns the line, with a newline before it: it ends what a scorer may have written."""
        fields = [
            self.job_id,
            self.pid,
            self.outcome.kind.value,
            self.outcome.score,
            self.outcome.message,
            self.is_shared,
            self.is_last,
        ]
        return f"\n{dumps(fields)}\n".encode()

    @classmethod
    def from_line(cls, line: bytes) -> Self | None:
        """Returns the reply; None if the line is none."""
        try:
            job_id, pid, kind, score, message, is_shared, is_last = json.loads(line)
            outcome = ScoreOutcome(kind=OutcomeKind(kind), score=score, message=message)
        except (ValueError, TypeError):
            return None
        return cls(job_id=job_id, pid=pid, outcome=outcome, is_shared=is_shared, is_last=is_last)

    def answers(self, job_id: str | None, *, pid: int) -> bool:
        """Whether it is that worker's answer to that job; None stands for its start."""
        return (self.job_id, self.pid) == (job_id or _START, pid)


def new_job_id() -> str:
    """Returns an id that no scorer can guess."""
    return secrets.token_hex(8)


def to_block(data: bytes) -> bytes:
    """Returns the bytes with their length before them."""
    return _LENGTH.pack(len(data)) + data


def receive_block(connection: socket.socket) -> bytes:
    """Waits for the next block; empty if the other end is closed."""
    header = _receive(connection, _LENGTH.size)
    return _receive(connection, *_LENGTH.unpack(header)) if header else b""


def _receive(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(size - len(data), 1 << 20))
        if not part:
            return b""
        data += part
    return bytes(data)
