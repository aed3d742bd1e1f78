"""A transport without a network, for what real sockets cannot show: single calls, exact buffer sizes, time by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from router.accounting import Accounting
from router.config.settings import RelaySettings
from router.relay.contract import Seen
from router.relay.frames import FrameScanner
from router.relay.leg import Leg
from router.relay.relay import Relay
from router.relay.sweep import Sweep
from router.relay.turns import Turns
from tests.helpers.clock import ManualClock


class FakeTransport(asyncio.Transport):
    """Records what it is told. Loss is reported only when a test says so (``lose``).

    Args:
        masks, turns: the leg's.

    Attributes:
        written: everything.
        kept: bytes that it says are in its buffer.
        reading: whether it would read.
        stubborn: pausing and resuming raise, as uvloop's transports do while they close.
    """

    def __init__(self, *, masks: bool = False, turns: Turns | None = None) -> None:
        super().__init__()
        self.written = bytearray()
        self.kept = 0
        self.reading = True
        self.closing = False
        self.aborted = False
        self.cut = asyncio.Event()  # set by ``abort``
        self.stubborn = False
        self.limits: tuple[int | None, int | None] = (None, None)
        self.released: list[BaseException | None] = []
        self.leg = Leg(self, masks=masks, on_released=self.released.append, turns=turns)

    def lose(self, exc: BaseException | None = None) -> None:
        """The connection is gone."""
        self.closing = True
        self.leg.connection_lost(exc)

    def take(self) -> bytes:
        """Return what was written since the last call."""
        taken = bytes(self.written)
        self.written.clear()
        return taken

    # --- asyncio.Transport ---

    def write(self, data: Any) -> None:
        self.written += data

    def pause_reading(self) -> None:
        if self.stubborn:
            raise RuntimeError("Cannot pause_reading() when closing")
        self.reading = False

    def resume_reading(self) -> None:
        if self.stubborn:
            raise RuntimeError("Not paused")
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limits = (high, low)

    def get_write_buffer_size(self) -> int:
        return self.kept

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert protocol is self.leg

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True
        self.cut.set()


class Timers:
    """``call_later`` without an event loop; what is set comes when a test says so (``come``)."""

    def __init__(self) -> None:
        self.set: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timers.Handle:
        """Set a timer."""
        timer = (delay_s, callback)
        self.set.append(timer)
        return Timers.Handle(self, timer)

    def come(self) -> bool:
        """Let all come that are set now, in their order; return whether there were any."""
        coming, self.set = self.set, []
        for _, callback in coming:
            callback()
        return bool(coming)

    class Handle:
        """Cancels one of them."""

        def __init__(self, timers: Timers, timer: tuple[float, Callable[[], None]]) -> None:
            self._timers = timers
            self._timer = timer

        def cancel(self) -> None:
            """It does not come."""
            self._timers.set.remove(self._timer)


class Bench:
    """A relay between two fake transports; its clock stands still. Made inside an event loop.

    Args:
        backlog, seen, upstream_close, early: the relay's.
        client, upstream: other transports than fresh ones.
        settings: limits.
    """

    def __init__(
        self,
        *,
        backlog: list[bytes] | None = None,
        seen: list[Seen] | None = None,
        upstream_close: tuple[int, str] | None = None,
        early: bytes = b"",
        client: FakeTransport | None = None,
        upstream: FakeTransport | None = None,
        **settings: Any,
    ) -> None:
        self.clock = ManualClock()
        # Never comes by itself: ``tick`` is called by hand.
        self.sweep = Sweep(clock=self.clock, interval_s=1e6)
        self.client = client or FakeTransport()
        self.upstream = upstream or FakeTransport(masks=True)
        self.accounting = Accounting(
            clock=self.clock,
            on_usage=lambda usage: None,
            on_first_audio=lambda seconds: None,
            on_trouble=lambda code, kind: None,
            on_limits=lambda spent, seconds: None,
            on_tick=lambda now: None,
        )
        limits = RelaySettings(**settings)
        self.relay = Relay(
            self.client.leg,
            self.upstream.leg,
            # The relay puts itself in the place of the first sink.
            scanner=FrameScanner(masked=False, max_message_bytes=limits.max_message_bytes, sink=None),  # type: ignore[arg-type]
            backlog=backlog or [],
            seen=seen or [],
            upstream_close=upstream_close,
            early=early,
            model="upstream-model",
            settings=limits,
            tap=self.accounting,
            sweep=self.sweep,
            clock=self.clock,
        )
        self.running = asyncio.create_task(self.relay.run())

    async def begin(self) -> None:
        """Let the relay join its legs."""
        await asyncio.sleep(0)

    def pass_time(self, seconds: float) -> None:
        """Move the clock; the relay looks at it before, as it does twice a second, and after."""
        self.relay.tick(self.clock())
        self.clock.advance(seconds)
        self.relay.tick(self.clock())

    async def finish(self) -> None:
        """Lose both connections, and wait for the end."""
        for transport in (self.client, self.upstream):
            if not transport.leg.lost:
                transport.lose()
        await self.running
