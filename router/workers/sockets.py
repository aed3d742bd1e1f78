"""The listening sockets of several workers: one a worker and address, on the same port (SO_REUSEPORT).

The parent opens all of them before the first worker exists and keeps them until the end. A socket that only a worker held would
be closed by the worker's death and reset every connection that waits in it (DESIGN §12).
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from router.app import BACKLOG
from router.config.settings import ListenSettings

# Host, port, and what belongs to IPv6.
_Address = tuple[str | int, ...]
#: An IP address to listen on, and its family.
Address = tuple[socket.AddressFamily, _Address]


def open_listeners(listen: ListenSettings, workers: int) -> list[list[socket.socket]]:
    """Listen on an address once for each worker.

    Args:
        listen: a host with several addresses is listened on at each of them; port 0 takes a free one for each address.
        workers: how many.

    Returns:
        Worker's number → its sockets, one for each address.

    Raises:
        OSError: the address cannot be had, or somebody listens there, even by SO_REUSEPORT: two routers on one port would share
            its connections without knowing of each other.
    """
    found: list[list[socket.socket]] = [[] for _ in range(workers)]
    with _closing_on_error(found):
        for address in resolve(listen):
            for sock, own in zip(open_address(address, workers), found, strict=True):
                own.append(sock)
    return found


def address_of(sock: socket.socket) -> tuple[str, int]:
    """Host and port of a listening socket."""
    host, port, *_ = sock.getsockname()
    return host, port


def resolve(listen: ListenSettings) -> list[Address]:
    """Return what a configured address is.

    Raises:
        OSError: it is nothing.
    """
    found = socket.getaddrinfo(listen.host or None, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses: list[Address] = []
    for family, _, _, _, address in found:
        if family in (socket.AF_INET, socket.AF_INET6) and (family, address) not in addresses:
            addresses.append((family, cast(_Address, address)))
    if not addresses:
        raise OSError(errno.EADDRNOTAVAIL, f"found no IP address for {listen.host!r}")
    return addresses


def open_address(where: Address, workers: int, *, shared: bool = True) -> list[socket.socket]:
    """Listen on one IP address once for each worker; one that is alone need not share it.

    Raises:
        OSError: see ``open_listeners``.
    """
    family, address = where
    host, port, *rest = address
    if shared and port != 0:
        # One that shares the port with nobody finds out whether somebody is there. (The kernel gives no port twice for 0.)
        _bind(family, address, shared=False).close()
    opened: list[socket.socket] = []
    with _closing_on_error([opened]):
        for _ in range(workers):
            sock = _bind(family, (host, port, *rest), shared=shared)
            opened.append(sock)
            port = sock.getsockname()[1]
        for sock in opened:
            sock.listen(BACKLOG)
    return opened


def _bind(family: socket.AddressFamily, address: _Address, *, shared: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # The option every server takes: connections that have just ended must not keep the port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # "::" beside "0.0.0.0", which is a socket of its own.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(address)
    except OSError as error:
        sock.close()
        # As the event loops word it, so that one process and several complain alike.
        reason = (error.strerror or str(error)).lower()
        raise OSError(error.errno, f"error while attempting to bind on address {address!r}: {reason}") from None
    return sock


@contextmanager
def _closing_on_error(groups: Sequence[Sequence[socket.socket]]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for sock in (sock for group in groups for sock in group):
            with contextlib.suppress(OSError):
                sock.close()
        raise


__all__ = ["Address", "address_of", "open_address", "open_listeners", "resolve"]
