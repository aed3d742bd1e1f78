"""How a transport leaves aiohttp once its handshake is done.

aiohttp does both handshakes, then the transports get the project's own protocol. What aiohttp's parsers had already read behind
the handshake is handed over first: ``set_parser`` gives it to any object with ``feed_data`` and ``feed_eof``, and tells
aiohttp's server that the upgrade was accepted. Both steps happen without an ``await`` between them, so no byte can slip in.

``request.protocol``, ``Connection.protocol`` and ``set_parser`` are public by name and undocumented: aiohttp is pinned below
the next minor version, and ``tests/integration/test_takeover.py`` fails when one of them changes its ways.
"""

from __future__ import annotations

from typing import Any, cast

from aiohttp import ClientResponse, web

from router.relay.leg import Leg


class _Capture:
    """A parser that keeps what it is fed."""

    def __init__(self) -> None:
        self.data = bytearray()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """The end of the stream reaches the leg by ``connection_lost``."""


def _counted(leg: Leg, capture: _Capture) -> bytes:
    """What was captured, counted as read from the leg."""
    leg.count(len(capture.data))
    return bytes(capture.data)


def take_client(request: web.Request) -> tuple[Leg, bytes]:
    """Take a client's transport over; its 101 has been sent.

    Returns: the leg and the bytes that came with the handshake, to be fed to its receiver first.
    Raises: ConnectionResetError: the client is gone already.
    """
    old = request.protocol
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("client left during the handshake")
    capture = _Capture()
    old.set_parser(cast(Any, capture))
    # The server's own idle timer would close the connection.
    old.keep_alive(False)
    # aiohttp's ``connection_lost`` cancels the handler, which is still at work then; so it is told when the handler has
    # released the leg.
    leg = Leg(transport, masks=False, on_released=old.connection_lost)
    # Answers to requests before this one that it has not taken yet: the transport told so once, and will not again.
    leg.writing_paused = old.writing_paused
    transport.set_protocol(leg)
    return leg, _counted(leg, capture)


def take_upstream(response: ClientResponse) -> tuple[Leg, bytes]:
    """Take an upstream's transport over; its 101 has been checked.

    Returns: as ``take_client``.
    Raises: ConnectionResetError: the upstream is gone already.
    """
    connection = response.connection
    old = connection.protocol if connection is not None else None
    transport = connection.transport if connection is not None else None
    if old is None or transport is None or transport.is_closing():
        raise ConnectionResetError("connection lost after the upgrade")
    capture = _Capture()
    old.set_parser(capture, None)

    def released(exc: BaseException | None) -> None:
        old.connection_lost(exc)
        response.close()

    leg = Leg(transport, masks=True, on_released=released)
    transport.set_protocol(leg)
    return leg, _counted(leg, capture)
