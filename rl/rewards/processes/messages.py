"""Messages between the trainer and a scorer's process.

The trainer sends blocks: a length and a pickle. The worker sends lines: JSON between newlines, so that other output
of a scorer to the same socket cannot break an answer. A line counts only if it has the id of the current job and the
worker's pid.
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
    """Worker's answer to one job."""

    job_id: str
    pid: int
    """Process id of the worker."""
    outcome: ScoreOutcome
    is_shared: bool
    """Whether threads or children of this job or an earlier one are left in the process."""
    is_last: bool
    """Whether the scorer changed the process irreversibly, so that it must not be used again."""

    @classmethod
    def of_start(cls, problem: str, *, pid: int) -> Self:
        """Build the answer to the scorer's start; `problem` is empty if it was loaded."""
        kind = OutcomeKind.ERROR if problem else OutcomeKind.SCORE
        outcome = ScoreOutcome(kind=kind, score=None if problem else 0.0, message=problem)
        return cls(job_id=_START, pid=pid, outcome=outcome, is_shared=False, is_last=False)

    def to_line(self) -> bytes:
        """Return the line. It starts with a newline to end anything that the scorer may have written before."""
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
        """Return the reply in a line; None if the line is something else."""
        try:
            job_id, pid, kind, score, message, is_shared, is_last = json.loads(line)
            outcome = ScoreOutcome(kind=OutcomeKind(kind), score=score, message=message)
        except (ValueError, TypeError):
            return None
        return cls(job_id=job_id, pid=pid, outcome=outcome, is_shared=is_shared, is_last=is_last)

    def answers(self, job_id: str | None, *, pid: int) -> bool:
        """Return whether this is the answer of worker `pid` to a job; a job id of None means the start."""
        return (self.job_id, self.pid) == (job_id or _START, pid)


def new_job_id() -> str:
    """Return an id that a scorer cannot guess."""
    return secrets.token_hex(8)


def to_block(data: bytes) -> bytes:
    """Return the bytes, preceded by their length."""
    return _LENGTH.pack(len(data)) + data


def receive_block(connection: socket.socket) -> bytes:
    """Wait for the next block and return it; return b"" if the other end is closed."""
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
