"""The clients: open sessions, send as the script says, check every event that comes back, and how the session ends."""

from __future__ import annotations

import asyncio
import base64
import random
import ssl
import time
from typing import Final

from benchmarks.relay.certificates import SERVER_NAME
from benchmarks.relay.events import FRAMES_PER_SECOND, SCRIPTS, Mode, Script
from benchmarks.relay.pacer import Pacer
from benchmarks.relay.upstream import Connection, Provider
from benchmarks.relay.wire import CLOSE, Endpoint, Fault, Verdict, accept_of, event_id

MODEL: Final = "voice"
_FRAME_NS: Final = 1_000_000_000 // FRAMES_PER_SECOND


class Session(Endpoint):
    """One session at the client.

    Attributes:
        connection: its other end, once ``session.created`` has told which.
        sent: events so far.
        received: events so far, each the one that had to come.
        stopping: sends nothing of its own any more.
        sent_ns: when each paced event was sent, by its number; 0 for the first, which is not.
        down_ns: how long each paced event of the provider was on its way.
        began_ns: when its dial began; created_ns: when ``session.created`` was there.
    """

    def __init__(self, load: Load, script: Script, *, in_flight: int = 1) -> None:
        super().__init__(masked=False, verdict=load.verdict)
        loop = asyncio.get_running_loop()
        self.number = load.next_number()
        self.script = script
        self.connection: Connection | None = None
        self.sent = 0
        self.received = 0
        self.stopping = False
        self.sent_ns: list[int] = []
        self.down_ns: list[int] = []
        self.began_ns = time.perf_counter_ns()
        self.created_ns = 0
        self.ready: asyncio.Future[None] = loop.create_future()  # its part of the script can begin
        self.ended: asyncio.Future[None] = loop.create_future()
        self._load = load
        self._in_flight = in_flight
        self._key = base64.b64encode(load.rng.randbytes(16))
        self._number_there = -1  # of the other end
        self._close_sent = False
        self._close_received = False

    @property
    def label(self) -> str:
        """Who it is, in a complaint."""
        return f"client, session {self.number}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected: ask for the upgrade."""
        super().connection_made(transport)
        self.transport.write(self._load.request(self._key))

    def head(self, head: bytes) -> None:
        """The answer to the upgrade."""
        status, *lines = head.split(b"\r\n")
        if not status.startswith(b"HTTP/1.1 101"):
            return self.fail(f"found {status.decode(errors='replace')!r}, expected 101")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        if headers.get(b"sec-websocket-accept") != accept_of(self._key):
            return self.fail("Sec-WebSocket-Accept does not fit the key")
        return None

    def send(self) -> None:
        """Send the next event."""
        sequence = self.sent
        self.sent += 1
        self.transport.write(self.script.up(sequence).frame(self.number, sequence))

    def event(self, data: bytes, at: int, start: int, end: int) -> None:
        """Check an event and go on."""
        sequence = self.received
        expected = self.script.down(sequence)
        if not sequence:
            self._claim(data[start + expected.id_at : start + expected.id_at + 8])
        digits = event_id(self._number_there, sequence)
        if not expected.is_frame(data, at, start, end, digits) and not expected.is_payload(data[start:end], digits):
            return self.complain(data, start, end, expected, self._number_there, sequence)
        self.received = sequence + 1
        if sequence < 2:
            self._opening(sequence)
            return None
        mode = self.script.mode
        if mode == "echo":
            if not self.stopping:
                self.send()
        elif mode == "paced":
            assert self.connection is not None
            sent = self.connection.sent_ns
            if sequence < len(sent) and sent[sequence]:
                self.down_ns.append(time.perf_counter_ns() - sent[sequence])
        elif sequence == len(self.script.downs) + 1 and not self.ready.done():
            self.ready.set_result(None)
        return None

    def _claim(self, digits: bytes) -> None:
        """Find the other end by the number in its first event."""
        self.created_ns = time.perf_counter_ns()
        if not digits.isdigit():
            return
        connection = self._load.provider.connections.get(int(digits))
        if connection is None or connection.claimed:
            return
        connection.claimed = True
        connection.client_sent_ns = self.sent_ns
        self.connection = connection
        self._number_there = connection.number

    def _opening(self, sequence: int) -> None:
        """``session.created`` and ``session.updated``."""
        mode = self.script.mode
        if mode == "setup":
            self.close()
        elif not sequence:
            self.send()
        elif mode == "turn":
            for _ in self.script.ups:
                self.send()
        else:
            self.ready.set_result(None)

    def start_echo(self) -> None:
        """Send the first events of a closed loop; each answer sends the next."""
        for _ in range(self._in_flight):
            self.send()

    def start_pacing(self, pacer: Pacer, first_ns: int) -> None:
        """Send by the clock until ``stopping``."""
        pacer.every(_FRAME_NS, first_ns, self._send_paced)

    def _send_paced(self) -> bool:
        if self.stopping or self.gone:
            return False
        self.sent_ns += [0] * (self.sent - len(self.sent_ns))
        self.sent_ns.append(time.perf_counter_ns())
        self.send()
        return True

    def stop(self) -> None:
        """Neither end sends anything of its own any more."""
        self.stopping = True
        if self.connection is not None:
            self.connection.paced = False

    @property
    def drained(self) -> bool:
        """Whether everything that was sent has arrived, both ways."""
        there = self.connection
        return there is not None and there.received == self.sent and self.received == there.sent

    def close(self) -> None:
        """Send CLOSE; ``ended`` tells when the connection is gone."""
        self._close_sent = True
        self.send_control(CLOSE, (1000).to_bytes(2, "big"))

    def closing(self, code: int) -> None:
        """The answer to our CLOSE, and nothing else."""
        if not self._close_sent:
            return self.fail(f"found CLOSE {code} in mid-session")
        if code != 1000 or self._close_received:
            return self.fail(f"found CLOSE {code}, expected 1000, once")
        self._close_received = True
        return None

    def connection_lost(self, exc: BaseException | None) -> None:
        """Gone: is that how it should end?"""
        self.gone = True
        if not self._close_received:
            self.fail(f"lost without CLOSE after {self.received} events" + (f" ({exc})" if exc else ""))
        if not self.ended.done():
            self.ended.set_result(None)


class Load:
    """Clients of one proxy.

    Args:
        provider: the other end, in this process.
        port: of the proxy; of the provider itself for the control without a proxy.
        key: of the client, for the proxy.
        tls: for the control, when the provider speaks TLS.
        verdict: told of faults.
        rng: keys and phases.
        patience_s: longest wait for anything that must happen; only a fault reaches it.

    Attributes:
        appends: events of audio that all its sessions have sent.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        port: int,
        key: str,
        tls: ssl.SSLContext | None,
        verdict: Verdict,
        rng: random.Random,
        patience_s: float,
    ) -> None:
        self.provider = provider
        self.verdict = verdict
        self.rng = rng
        self.patience_s = patience_s
        self.appends = 0
        self._port = port
        self._tls = tls
        self._numbers = 0
        self._request = (
            f"GET /v1/realtime?model={MODEL} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"User-Agent: realtime-router-benchmark\r\nAuthorization: Bearer {key}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: "
        ).encode()

    def next_number(self) -> int:
        """A session's number."""
        self._numbers += 1
        return self._numbers

    def request(self, key: bytes) -> bytes:
        """The upgrade request with a ``Sec-WebSocket-Key``."""
        return b"".join((self._request, key, b"\r\n\r\n"))

    async def dial(self, mode: Mode, *, in_flight: int = 1) -> Session:
        """Connect; the session goes on by itself."""
        session = Session(self, SCRIPTS[mode], in_flight=in_flight)
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: session,
                "127.0.0.1",
                self._port,
                ssl=self._tls,
                server_hostname=SERVER_NAME if self._tls is not None else None,
            )
        except OSError as error:
            self.verdict.fail(f"{session.label}: cannot connect: {error}")
            self.verdict.check()
        return session

    async def open(self, mode: Mode, count: int, *, in_flight: int = 1, at_once: int = 8) -> list[Session]:
        """Open sessions and wait until each is ready: for ``turn``, until its turn is over."""
        sessions: list[Session] = []
        places = iter(range(count))

        async def work() -> None:
            for _ in places:
                session = await self.dial(mode, in_flight=in_flight)
                await session.ready
                sessions.append(session)

        async def all_workers() -> None:
            await asyncio.gather(*(work() for _ in range(min(at_once, count))))

        await self.verdict.race(all_workers(), within_s=self.patience_s + count * 0.05, what=f"opening {count} sessions")
        return sessions

    async def finish(self, sessions: list[Session]) -> None:
        """Stop sending, wait until everything has arrived, close, and wait for the end of every connection.

        Raises: Fault: something is missing, or a session ends in another way than it should.
        """
        for session in sessions:
            session.stop()
        await self._until_drained(sessions)
        for session in sessions:
            session.close()
            # The first is the session.update; the script of a turn ends with two that are no audio.
            self.appends += sum(session.script.up(n).type == "input_audio_buffer.append" for n in range(session.sent))

        async def all_ended() -> None:
            for session in sessions:
                await session.ended

        await self.verdict.race(all_ended(), within_s=self.patience_s, what="the end of every connection")
        for session in sessions:
            assert session.connection is not None
            if session.received != session.connection.sent or session.connection.received != session.sent:
                raise Fault(f"{session.label}: events were lost at its end")

    async def _until_drained(self, sessions: list[Session]) -> None:
        deadline = time.monotonic() + self.patience_s
        while not all(session.drained for session in sessions):
            if time.monotonic() > deadline:
                missing = next(session for session in sessions if not session.drained)
                there = missing.connection
                assert there is not None
                self.verdict.fail(
                    f"{missing.label}: lost: {missing.sent - there.received} events up, {there.sent - missing.received} down"
                )
            await self.verdict.sleep(0.005)
