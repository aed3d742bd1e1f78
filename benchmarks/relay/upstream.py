"""The provider: accepts sessions, checks every event of the client, answers as the session's script says."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Final

from benchmarks.relay.events import DELTAS_PER_SECOND, SCRIPTS, Script
from benchmarks.relay.pacer import Pacer
from benchmarks.relay.wire import CLOSE, Endpoint, Verdict, accept_of, complaint, event_id

PATH: Final = b"/v1/realtime"
_DELTA_NS: Final = 1_000_000_000 // DELTAS_PER_SECOND


class Connection(Endpoint):
    """One session at the provider.

    Attributes:
        number: stands in each of its events.
        script: known from the client's first event on.
        claimed: a client has seen its ``session.created``.
        sent: events so far.
        received: events so far, each the one that had to come.
        sent_ns: when each paced event was sent, by its number from 0; 0 for all others.
        up_ns: how long each paced event of the client was on its way.
    """

    def __init__(self, provider: Provider, *, port: int) -> None:
        super().__init__(masked=True, verdict=provider.verdict)
        self.script: Script = SCRIPTS["setup"]
        self.claimed = False
        self.closed = False
        self.sent = 0
        self.received = 0
        self.sent_ns: list[int] = []
        self.up_ns: list[int] = []
        self.client_sent_ns: list[int] = []  # the client's own list, once it has claimed the connection
        self.paced = False  # only set while the clock sends
        self._provider = provider
        self._port = port
        self._session = -1  # the client's number, known from its first event on
        self.number = provider.register(self)

    @property
    def label(self) -> str:
        """Who it is, in a complaint."""
        return f"provider, session {self.number}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self._provider.count_handshake(self._port, resumed=bool(tls.session_reused))

    def head(self, head: bytes) -> None:
        """The request: check it, accept it."""
        request, *lines = head.split(b"\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        path = request.split(b" ")[1].partition(b"?")[0] if request.count(b" ") == 2 else b""
        if not request.startswith(b"GET ") or path != PATH:
            return self.fail(f"found request {request!r}, expected GET {PATH.decode()}")
        if headers.get(b"authorization") != b"Bearer " + self._provider.key.encode():
            return self.fail("the request does not carry the provider's key")
        if b"sec-websocket-extensions" in headers:
            return self.fail("the request asks for an extension, which no client offered")
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
            + accept_of(headers.get(b"sec-websocket-key", b""))
            + b"\r\n\r\n"
        )
        # A turn of the loop later, so that it is a segment of its own, as it is with a provider.
        asyncio.get_running_loop().call_soon(self.send)
        return None

    def send(self) -> None:
        """Send the next event."""
        if self.gone:
            return
        sequence = self.sent
        self.sent += 1
        self.transport.write(self.script.down(sequence).frame(self.number, sequence))

    def start_pacing(self, pacer: Pacer, first_ns: int) -> None:
        """Send by the clock until ``paced`` is cleared."""
        self.paced = True
        pacer.every(_DELTA_NS, first_ns, self._send_paced)

    def _send_paced(self) -> bool:
        if not self.paced or self.gone:
            return False
        self.sent_ns += [0] * (self.sent - len(self.sent_ns))
        self.sent_ns.append(time.perf_counter_ns())
        self.send()
        return True

    def event(self, data: bytes, at: int, start: int, end: int) -> None:
        """Check an event and answer it."""
        sequence = self.received
        if not sequence:
            self._hello(self._payload(data, start, end))
            return
        script = self.script
        expected = script.up(sequence)
        digits = event_id(self._session, sequence)
        # The same mask key, as a rule, for a proxy that moves bytes; another one where it makes its own frames.
        if not expected.is_frame(data, at, start, end, digits):
            payload = self._payload(data, start, end)
            if not expected.is_payload(payload, digits):
                return self.complain(data, start, end, expected, self._session, sequence)
        self.received = sequence + 1
        if script.mode == "echo":
            self.send()
        elif script.mode == "paced":
            sent = self.client_sent_ns
            if sequence < len(sent) and sent[sequence]:
                self.up_ns.append(time.perf_counter_ns() - sent[sequence])
        elif sequence == len(script.ups):
            for _ in script.downs:
                self.send()
        return None

    def _hello(self, payload: bytes) -> None:
        for script in SCRIPTS.values():
            hello = script.hello
            number = payload[hello.id_at : hello.id_at + 8]
            if number.isdigit() and hello.is_payload(payload, event_id(int(number), 0)):
                self._session = int(number)
                break
        else:
            wanted = SCRIPTS["echo"].hello
            return self.fail(complaint(payload, wanted, self._session, 0))
        self.script = script
        self.received = 1
        self.send()
        return None

    def closing(self, code: int) -> None:
        """The client's CLOSE: answer it and end the connection."""
        if self.closed:
            return self.fail("a second CLOSE")
        if code != 1000:
            return self.fail(f"found CLOSE {code}, expected 1000")
        self.closed = True
        self.paced = False
        self.send_control(CLOSE, (1000).to_bytes(2, "big"))
        self.transport.close()
        return None

    def connection_lost(self, exc: BaseException | None) -> None:
        """Gone; without CLOSE that is a fault."""
        self.gone = True
        self._provider.forget(self)
        # Whoever only looks whether the port is open is no session.
        if self.open and not self.closed:
            self.fail(f"lost without CLOSE after {self.received} events")


class Provider:
    """All sessions, whichever proxy they come through; each proxy has a port of its own.

    Args:
        key: that every request must carry.
        verdict: told of faults.

    Attributes:
        connections: those that live, by number.
    """

    def __init__(self, *, key: str, verdict: Verdict) -> None:
        self.key = key
        self.verdict = verdict
        self.connections: dict[int, Connection] = {}
        self._accepted = 0
        self._servers: list[asyncio.Server] = []
        self._handshakes: dict[int, list[int]] = {}  # by port: [full, resumed]

    async def listen(self, tls: ssl.SSLContext | None) -> int:
        """Listen on a port of its own for one proxy; return it."""
        port: int = 0

        def accept() -> Connection:
            return Connection(self, port=port)

        server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0, ssl=tls, backlog=1024)
        self._servers.append(server)
        _, port = server.sockets[0].getsockname()
        return port

    def register(self, connection: Connection) -> int:
        """Give a connection its number."""
        self._accepted += 1
        self.connections[self._accepted] = connection
        return self._accepted

    def forget(self, connection: Connection) -> None:
        """A connection is gone."""
        self.connections.pop(connection.number, None)

    def count_handshake(self, port: int, *, resumed: bool) -> None:
        """A TLS handshake is done."""
        self._handshakes.setdefault(port, [0, 0])[resumed] += 1

    def handshakes(self, port: int) -> tuple[int, int]:
        """TLS handshakes through a port so far: full ones, resumed ones."""
        full, resumed = self._handshakes.get(port, (0, 0))
        return full, resumed

    async def close(self) -> None:
        """Listen no more and cut what is left."""
        for server in self._servers:
            server.close()
        for connection in list(self.connections.values()):
            connection.closed = True
            connection.transport.abort()
