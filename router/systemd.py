"""What systemd offers a service: sockets that it listens on itself, and being told how the service is.

Sources: sd_listen_fds(3) and sd_notify(3). Both are environment variables and plain sockets, so no library is needed.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Final

from router.handover import Given, HandoverFailed, Role, require_listening

_FIRST: Final = 3  # SD_LISTEN_FDS_START
# Names that say whom a socket is for; with any others it is the order that does.
_ROLES: Final[Mapping[str, Role]] = {"clients": "clients", "operators": "operators"}


def activated(environ: MutableMapping[str, str], *, operators: bool) -> list[Given]:
    """Take the sockets that this process was started with.

    Args:
        environ: ``LISTEN_PID``, ``LISTEN_FDS`` and ``LISTEN_FDNAMES`` are taken out of it: they are this process' alone.
        operators: those of operators have an address of their own, so the second of several sockets without a name is theirs.

    Raises:
        HandoverFailed: one of them is something else than a listening TCP socket.
    """
    pid, count, names = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if not count or pid != str(os.getpid()):
        return []
    if not (count.isascii() and count.isdigit() and int(count) <= 1024):
        raise HandoverFailed(f"LISTEN_FDS: found {count[:20]!r}, expected a number of sockets")
    return [
        Given(role=role, sock=_listening(_FIRST + index))
        for index, role in enumerate(_roles(int(count), names.split(":"), operators=operators))
    ]


def _roles(count: int, names: Sequence[str], *, operators: bool) -> list[Role]:
    if len(names) == count and all(name in _ROLES for name in names):
        return [_ROLES[name] for name in names]
    return ["operators" if operators and index == 1 else "clients" for index in range(count)]


def _listening(descriptor: int) -> socket.socket:
    where = f"LISTEN_FDS: descriptor {descriptor}"
    try:
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise HandoverFailed(f"{where}: found {error.strerror or error}, expected a listening TCP socket") from None
    require_listening(sock, where)
    return sock


def notify(*states: str, environ: Mapping[str, str] = os.environ) -> None:
    """Tell the supervisor, if there is one that wants to know, such as ``READY=1``; a loss is nobody's concern."""
    path = environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        # An abstract name begins with a zero byte.
        sock.sendto("\n".join(states).encode(), f"\0{path[1:]}" if path.startswith("@") else path)
