"""A worker as its parent knows it, its place, and when the next one takes that."""

from __future__ import annotations

import math
import signal
import socket
from dataclasses import dataclass, field
from typing import Any, Final

from router.workers import merge
from router.workers.channel import ParentEnd

#: A worker that lived this long is replaced at once ...
SETTLED_S: Final = 10.0
#: ... and others after this, doubled with each of them in a row.
FIRST_DELAY_S: Final = 0.1
MOST_DELAY_S: Final = 2.0


@dataclass(slots=True, kw_only=True, eq=False)
class Worker:
    """A process that serves, or is about to."""

    number: int  # of its slot
    pid: int
    member: str  # its name on the board
    end: ParentEnd
    born_at: float
    watched: int = 0  # what the selector looks at, of its channel
    serving: bool = False  # it has said that it accepts connections
    sessions: int = 0  # as it said last
    by_themselves: int = 0  # sessions that ended while it drained, as it said last ...
    ended_by_it: int = 0  # ... and those that it ended
    idle: bool = False  # it drains, and nobody is left
    silent: int = 0  # ticks since it said anything
    samples: merge.Packed = ()  # its metrics, as it said last
    # Numbers of what it was asked and has not answered yet, with the questions' keys (``gathering``).
    owes: dict[int, str] = field(default_factory=dict)
    told: int = 0  # version of the overrides that it knows
    confused: bool = False  # it has said something senseless, which is told once


@dataclass(slots=True, kw_only=True)
class Slot:
    """A worker's place: its number, its sockets, and who is there."""

    number: int
    sockets: list[socket.socket]
    worker: Worker | None = None
    due_at: float = math.inf  # when the next one is to be forked; only finite while there is none
    died_at: float | None = None  # only set until a replacement serves
    early_deaths: int = 0  # in a row


def delay_s(lived_s: float, early_deaths: int) -> float:
    """Return the seconds until a worker that died is replaced.

    Args:
        lived_s: how long it lived.
        early_deaths: how many before it, in a row, in the same slot, had not lived ``SETTLED_S``.
    """
    if lived_s >= SETTLED_S:
        return 0.0
    # Beyond this power the bound holds anyway.
    return min(MOST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(early_deaths, 16))


def cause_of(status: int) -> dict[str, Any]:
    """Return how a process ended, for the log: the name of a signal, or its exit code (``os.waitstatus_to_exitcode``)."""
    if status >= 0:
        return {"code": status}
    try:
        return {"signal": signal.Signals(-status).name}
    except ValueError:
        return {"signal": f"signal {-status}"}
