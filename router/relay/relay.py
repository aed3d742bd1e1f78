"""Two legs joined for the rest of a session.

What arrives on one leg is written to the other verbatim: a client's frames are masked with a key that is as good towards the
upstream (RFC 6455 §5.3), because neither leg negotiated an extension. Relaying message by message through aiohttp costs 26 µs
of CPU a message, moving bytes past a scanner 12 µs, HAProxy 11–13 µs; 8–9 µs of each are the kernel's.

How a session ends, by who is first:

1. A leg sends CLOSE: it is passed on, the other side's answer is passed back, both connections are closed. An answer that does
   not come within ``CLOSE_TIMEOUT_S`` is not waited for any longer.
2. A leg is lost without CLOSE: the other one gets 1001 (the client left) or 1011 (the upstream was lost); in the middle of a
   frame that is impossible, and the connection is cut instead.
3. A leg breaks the protocol: it gets RFC 6455's code for that, the other one 1001 or 1011.
4. The router ends it (``end``, a time limit, a peer that is dead or takes nothing): an ``error`` event where one is due, then
CLOSE.

Own pings keep middle boxes from cutting an idle session and find dead peers; the answers to them are swallowed. The peers' own
pings and pongs pass from end to end.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

from router.config.settings import RelaySettings
from router.jsontext import parse_object
from router.relay import frames
from router.relay.contract import Cause, Phase, Seen, SessionEnd, Side, Tap, Who, error_event
from router.relay.frames import CLOSE, COLLECT, HOLD, PASS, PING, PONG, TEXT, DeafSink, Disposition, FrameError, FrameScanner
from router.relay.leg import Leg
from router.relay.rewrite import SESSION_UPDATE, rewrite_session_update
from router.relay.sweep import Sweep

# How long the other side's CLOSE, and then the end of its connection, is waited for.
CLOSE_TIMEOUT_S: Final = 2.0
# How long the last bytes may take to get out, once that time is over.
FLUSH_TIMEOUT_S: Final = 0.5
# How long an ending of the router's own waits for a boundary in the stream; a peer stalled in mid-message never reaches one.
BOUNDARY_TIMEOUT_S: Final = 1.0

class _Direction:
    """One direction: the receiver of its source leg and the sink of its scanner."""

    __slots__ = ("_relay", "close", "dead", "peer", "scanner", "side", "source", "target")

    def __init__(self, relay: Relay, side: Side, source: Leg, target: Leg, scanner: FrameScanner) -> None:
        self.side: Side = side
        self.source = source
        self.target = target
        self.scanner = scanner
        self.close: tuple[int, str] | None = None  # the CLOSE that came from the source
        self.dead = False  # the source broke the protocol: what it sends is not looked at any more
        self.peer: _Direction  # the other direction
        self._relay = relay

    # --- Receiver of the source leg -----------------------------------------------------------------

    def data(self, data: bytes) -> None:
        if self.dead:
            return
        try:
            out = self.scanner.feed(data)
        except FrameError as error:
            self.forward(frames.legal_output(error))
            self.dead = True
            self._relay.violated(self, error)
            return
        target = self.target
        for piece in out:
            target.write(piece)
        if self.close is not None:
            self._relay.closes_progressed()

    def forward(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self.target.write(piece)

    def lost(self, exc: BaseException | None) -> None:
        self._relay.leg_lost(self)

    def writing(self, *, paused: bool) -> None:
        # The source leg's write buffer is what the other direction fills.
        other = self.target
        if paused:
            other.pause_reading()
        else:
            other.resume_reading()

    # --- Sink of the scanner ------------------------------------------------------------------------

    def classify(self, opcode: int, event_type: str | None) -> Disposition:
        if opcode != TEXT:
            return PASS
        if self.side == "client":
            # A type that the first bytes do not tell may be a session.update.
            return HOLD if event_type is None or event_type == SESSION_UPDATE else PASS
        return COLLECT if event_type is None or event_type in self._relay.tap.collect else PASS

    def message(self, opcode: int, event_type: str | None, size: int, payload: bytes | None) -> bytes | None:
        if event_type is None and payload is not None and opcode == TEXT:
            event_type = type_by_parsing(payload)
        self._relay.tap.message(self.side, opcode, event_type, size, payload)
        if self.side == "upstream" or event_type != SESSION_UPDATE or payload is None:
            return None
        changed = rewrite_session_update(payload, self._relay.model)
        return None if changed is None else self.target.frame(TEXT, changed)

    def control(self, opcode: int, payload: bytes) -> bool:
        return not (opcode == PONG and payload == self._relay.ping_payload)

    def closing(self, code: int, reason: str) -> bool:
        self.close = (code, reason)
        self._relay.close_received(self)
        return True


def type_by_parsing(payload: bytes) -> str | None:
    """Name an event whose type stands in no usual place."""
    event_type = parse_object(payload).get("type")
    return event_type if isinstance(event_type, str) else None


class Relay:
    """Joins two legs and keeps them joined until the session is over.

    Args:
        client: the client's leg.
        upstream: the upstream's leg, reading paused or not.
        scanner: the upstream's scanner, which has followed that leg since its 101.
        backlog: what the scanner let out before the join; it goes to the client first.
        seen: the messages in that backlog.
        early: bytes that the client sent behind its upgrade request.
        model: what the upstream calls the model.
        settings: limits.
        tap: who is told of the messages.
        sweep: whose clock is used for pings and limits.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        client: Leg,
        upstream: Leg,
        *,
        scanner: FrameScanner,
        backlog: list[bytes],
        seen: list[Seen],
        upstream_close: tuple[int, str] | None,
        early: bytes,
        model: str,
        settings: RelaySettings,
        tap: Tap,
        sweep: Sweep,
        clock: Callable[[], float],
    ) -> None:
        self.tap = tap
        self.model = model
        self.ping_payload = b"rr" + os.urandom(6)
        self._client = client
        self._upstream = upstream
        self._settings = settings
        self._sweep = sweep
        self._clock = clock
        self._started = clock()
        self._backlog = backlog
        self._seen = seen
        self._early = early
        self._up = _Direction(self, "client", client, upstream, scanner)
        self._up.scanner = FrameScanner(masked=True, max_message_bytes=settings.max_message_bytes, sink=self._up)
        self._down = _Direction(self, "upstream", upstream, client, scanner)
        self._up.peer, self._down.peer = self._down, self._up
        self._down.close = upstream_close
        scanner.sink = self._down
        self._ended: tuple[Who, Cause, Phase] | None = None  # set once, by whatever ends the session first
        self._ended_at = 0.0
        # The code of a CLOSE of the router's own, by leg; ``None`` while there was none.
        self._sent: dict[Side, int | None] = {"client": None, "upstream": None}
        # The code of the first CLOSE on a leg, whoever sent it; the answer to it may name another one.
        self._first_code: dict[Side, int] = {}
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._timer: asyncio.TimerHandle | None = None  # only set while an end is under way
        now = self._started
        self._watch = {"client": _Watch(client, now), "upstream": _Watch(upstream, now)}
        self._events_before = -1
        self._active_at = now
        self._ping_at = now + settings.ping_interval_s

    async def run(self) -> SessionEnd:
        """Relay until both connections are gone. Cancelling it cuts both at once."""
        try:
            self._join()
            await self._done
        finally:
            self._sweep.discard(self)
            if self._timer is not None:
                self._timer.cancel()
            if self._ended is None:
                self._begin_end("router", "cancelled")
            self._client.abort()
            self._upstream.abort()
        return self.summary()

    def dissolve(self) -> None:
        """The legs have been released: let go of everything that refers to each other in a circle.

        Reference counting frees the session at once then, and the collector, which would have to look at all running sessions
        to find it, has nothing to do.
        """
        for direction in (self._up, self._down):
            direction.scanner.sink = _NOBODY
            del direction.peer, direction._relay
        self._watch.clear()

    def summary(self) -> SessionEnd:
        """The end as it stands; exact once ``run`` has returned or was cancelled."""
        who, cause, phase = self._ended or ("router", "cancelled", self.tap.phase)
        return SessionEnd(
            who=who,
            cause=cause,
            phase=phase,
            client_code=self._first_code.get("client", 1006),
            upstream_code=self._first_code.get("upstream", 1006),
            upstream_reason=self._down.close[1] if self._down.close is not None else "",
            client_bytes=self._client.bytes_in,
            upstream_bytes=self._upstream.bytes_in,
            client_events=self._up.scanner.events,
            upstream_events=self._down.scanner.events,
            seconds=(self._ended_at or self._clock()) - self._started,
        )

    @property
    def quiet(self) -> bool:
        """Nobody would be interrupted by an end, as far as can be seen from here."""
        return self.tap.quiet

    def end(self, *, cause: Cause, code: int, reason: str, error_event: bytes | None = None) -> None:
        """End the session from the router's side, politely.

        Args:
            cause: for the record.
            code: close code for the client; the upstream gets 1001.
            reason: close reason for the client.
            error_event: JSON text of an event that the client gets before the CLOSE.
        """
        if self._ended is not None:
            return
        self._begin_end("router", cause)
        self._send_close(self._down, code, reason, event=error_event)
        self._send_close(self._up, 1001, "")

    # --- beginning ----------------------------------------------------------------------------------

    def _join(self) -> None:
        self._sweep.add(self)
        self._client.receiver = self._up
        self._upstream.receiver = self._down
        self.tap.join(self._up.scanner, self._down.scanner)
        for message in self._seen:
            self.tap.message("upstream", message.opcode, message.event_type, message.size, message.payload)
        self._down.forward(self._backlog)
        self._backlog, self._seen = [], []
        if self._down.close is not None:
            self.close_received(self._down)
        if self._early:
            self._up.data(self._early)
            self._early = b""
        self._client.join(self._up.scanner, self._upstream)
        self._upstream.join(self._down.scanner, self._client)
        # Either may have been lost while nobody listened.
        if self._upstream.lost:
            self.leg_lost(self._down)
        if self._client.lost:
            self.leg_lost(self._up)
        if self._client.writing_paused:
            self._upstream.pause_reading()
        else:
            self._upstream.resume_reading()

    # --- ending -------------------------------------------------------------------------------------

    def _begin_end(self, who: Who, cause: Cause) -> None:
        if self._ended is not None:
            return
        self._ended = (who, cause, self.tap.phase)
        self._ended_at = self._clock()
        self._timer = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._cut)

    def close_received(self, direction: _Direction) -> None:
        """A CLOSE came from a direction's source; the scanner is about to pass it on."""
        assert direction.close is not None
        code, other = direction.close[0], direction.peer.side
        self._first_code.setdefault(direction.side, code)
        # One of the router's own that still waits for its place is overtaken.
        if direction.scanner.final_waits or (other not in self._first_code and not direction.target.lost):
            self._first_code[other] = code
        self._begin_end(direction.side, "close")

    def closes_progressed(self) -> None:
        """What was read has been written: see whether both sides have said CLOSE."""
        for direction in (self._up, self._down):
            answered = direction.close is not None
            told = direction.peer.close is not None or self._sent[direction.side] is not None
            # The client is ours to close, for we are its server (RFC 6455 §7.1.1). The upstream gets until the timer to do it.
            if answered and told and direction.side == "client":
                direction.source.close()

    def leg_lost(self, direction: _Direction) -> None:
        """A direction's source is gone."""
        self._begin_end(direction.side, "lost")
        other = direction.target
        if other.lost:
            if not self._done.done():
                self._done.set_result(None)
            return
        # Its answer and its end are of interest; whatever else it says is dropped from now on and cannot flood anybody.
        other.resume_reading()
        if direction.close is not None and direction.peer.close is not None:
            other.close()
            return
        if direction.close is not None:
            return
        code, reason = (1001, "") if direction.side == "client" else (1011, "upstream connection lost")
        if direction.peer.close is not None:
            # The other side waits for the answer to its CLOSE: give it its own code back (RFC 6455 §5.5.1).
            code, reason = _echo(direction.peer.close[0]), ""
        self._send_close(direction, code, reason, now=True)

    def violated(self, direction: _Direction, error: FrameError) -> None:
        """A direction's source broke the protocol."""
        self._begin_end(direction.side, "protocol")
        self._send_close(direction.peer, error.code, error.detail if direction.side == "client" else "")
        code, reason = (1001, "") if direction.side == "client" else (1011, "upstream protocol error")
        self._send_close(direction, code, reason)

    def _send_close(
        self, direction: _Direction, code: int, reason: str, *, event: bytes | None = None, now: bool = False
    ) -> None:
        """Put a CLOSE of the router's own at the end of a direction's output.

        ``now``: the source is gone, so a boundary that has not come never will.
        """
        target_side = direction.peer.side
        if self._sent[target_side] is not None or direction.close is not None or direction.target.lost:
            return
        self._sent[target_side] = code
        target = direction.target
        close = target.frame(CLOSE, frames.close_payload(code, reason))
        blob = close if event is None else target.frame(TEXT, event) + close
        ready = direction.scanner.finish(blob, after_message=event is not None)
        if ready:
            self._first_code.setdefault(target_side, code)
            target.write(ready)
            # See the answer and the end of the connection, unless that could flood a reader that takes nothing.
            if not direction.source.writing_paused:
                target.resume_reading()
        elif now:
            # In the middle of a frame nothing else can be said.
            self._sent[target_side] = None
            target.close()
        elif direction.scanner.final_waits:
            self._first_code.setdefault(target_side, code)
            asyncio.get_running_loop().call_later(BOUNDARY_TIMEOUT_S, self._force_boundary, direction)

    def _force_boundary(self, direction: _Direction) -> None:
        if direction.scanner.final_waits and not direction.target.lost:
            side = direction.peer.side
            if direction.close is None and direction.peer.close is None:
                self._first_code.pop(side, None)
            self._sent[side] = None
            direction.target.abort()

    def _cut(self) -> None:
        """The time for an orderly end is over."""
        for direction in (self._up, self._down):
            source = direction.source
            waits = direction.close is not None and direction.peer.close is None and self._sent[direction.side] is None
            if waits and not source.lost:
                # It said CLOSE and the other side never answered: it gets its own code back from us (RFC 6455 §5.5.1).
                assert direction.close is not None
                self._send_close(direction.peer, _echo(direction.close[0]), "", now=True)
                source.close()
            else:
                # What was written but not yet taken, such as our CLOSE to a slow reader, is given up.
                source.abort()
        self._timer = asyncio.get_running_loop().call_later(FLUSH_TIMEOUT_S, self._abort)

    def cut(self) -> None:
        """End both connections at once."""
        self._abort()

    def _abort(self) -> None:
        self._client.abort()
        self._upstream.abort()

    # --- the clock ----------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Pings, dead peers, stalled readers, time limits."""
        if self._ended is not None:
            return
        settings = self._settings
        self.tap.tick(now)
        for side, watch in self._watch.items():
            watch.look(now)
            if now - watch.heard_at > settings.ping_timeout_s:
                self._drop(side, "dead")
                return
            if now - watch.moved_at > settings.stall_timeout_s:
                self._drop(side, "stalled")
                return
        if now >= self._ping_at:
            self._ping_at = now + settings.ping_interval_s
            for direction in (self._up, self._down):
                ping = direction.target.frame(PING, self.ping_payload)
                direction.target.write(direction.scanner.inject_control(ping))
        events = self._up.scanner.events + self._down.scanner.events
        if events != self._events_before:
            self._events_before = events
            self._active_at = now
        if settings.max_session_s is not None and now - self._started >= settings.max_session_s:
            self.end(
                cause="max_session",
                code=1001,
                reason="maximum session duration reached",
                error_event=error_event("session_expired", "The session reached the router's maximum duration."),
            )
        elif settings.idle_timeout_s is not None and now - self._active_at >= settings.idle_timeout_s:
            self.end(
                cause="idle_timeout",
                code=1001,
                reason="idle timeout",
                error_event=error_event("idle_timeout", "The session was closed because neither side sent an event."),
            )

    def _drop(self, side: str, cause: Cause) -> None:
        """A peer is dead or takes nothing: cut it off and tell the other one."""
        direction = self._up if side == "client" else self._down
        self._begin_end(direction.side, cause)
        code, reason = (1001, "") if direction.side == "client" else (1011, "upstream connection lost")
        self._send_close(direction, code, reason, now=True)
        direction.source.abort()


# Sink of scanners that are not fed any more.
_NOBODY: Final = DeafSink()


def _echo(code: int) -> int:
    """The code that answers a CLOSE: its own, or 1000 where it had none, for 1005 never travels."""
    return 1000 if code == 1005 else code


class _Watch:
    """When a leg was last heard, and when it last took something."""

    __slots__ = ("_bytes", "_leg", "_resumes", "_waiting", "heard_at", "moved_at")

    def __init__(self, leg: Leg, now: float) -> None:
        self._leg = leg
        self._bytes = -1
        self._resumes = 0
        self._waiting = 0  # bytes in the write buffer
        self.heard_at = now
        self.moved_at = now

    def look(self, now: float) -> None:
        """Compare with the last look."""
        leg = self._leg
        # While we do not read, silence proves nothing.
        if leg.bytes_in != self._bytes or leg.reading_paused or leg.waiting:
            self._bytes = leg.bytes_in
            self.heard_at = now
        if not leg.writing_paused:
            self.moved_at = now
            self._waiting = 0
            return
        # The buffer's size alone does not tell: between two looks it may have been emptied and filled again.
        waiting = leg.transport.get_write_buffer_size()
        if waiting < self._waiting or leg.resumes != self._resumes:
            self.moved_at = now
        self._waiting = waiting
        self._resumes = leg.resumes
