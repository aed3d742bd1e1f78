"""Ports for programs that want theirs named before they start.

The system hands out the ports of its own range to whoever connects or lets it choose, so one of those that was free a moment ago
may be anybody's when the program gets to it, and who then connects talks to a stranger. The ports below that range belong to
nobody; each is tried once by a process, so that only processes can take one from each other, and seldom.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from typing import Final

#: Services of the machine itself are below.
LOWEST: Final = 10_000
# Where Linux says from where on it chooses; elsewhere that is above the usual 32768.
_RANGE: Final = "/proc/sys/net/ipv4/ip_local_port_range"


def free_port(*, and_above: int = 0) -> int:
    """Return a port that nobody listens on.

    Args:
        and_above: the one so far above it is free as well, and not the system's to choose either.

    Raises:
        LookupError: there is none.
    """
    for port in _ports:
        if port + and_above < _END and _is_free(port) and (not and_above or _is_free(port + and_above)):
            return port
    raise LookupError(f"found no free port from {LOWEST} to {_END - 1}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _end() -> int:
    try:
        with open(_RANGE, encoding="ascii") as file:
            lowest = int(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        lowest = 32768
    # A machine that gives all of them away leaves no better ones.
    return lowest if lowest > LOWEST + 1000 else 32768


def _shuffled() -> Iterator[int]:
    # By the process: tests run in several, which must not all try the same.
    chooser = random.Random(os.urandom(16))
    while True:
        yield from chooser.sample(range(LOWEST, _END), k=_END - LOWEST)


_END: Final = _end()
_ports: Final = _shuffled()
