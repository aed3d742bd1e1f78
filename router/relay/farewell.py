"""A client that was accepted only to be told why it gets no session: last words, CLOSE, its answer, the end.

Not by aiohttp's ``WebSocketResponse``: it logs the subprotocols that a client offered, and those may hold a key.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from router.relay.frames import CLOSE, TEXT, DeafSink, FrameError, FrameScanner, close_payload
from router.relay.leg import Leg

# What the client may still say; it is not looked at, but must be legal.
_MAX_MESSAGE_BYTES: Final = 32 * 1024 * 1024


class Farewell(DeafSink):
    """Receiver of the client's leg and sink of its scanner for the moment that is left.

    Args:
        leg: the client's; the caller releases it.
    """

    def __init__(self, leg: Leg) -> None:
        self._leg = leg
        self._scanner = FrameScanner(masked=True, max_message_bytes=_MAX_MESSAGE_BYTES, sink=self)
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def say(self, text: bytes, *, code: int, reason: str, timeout_s: float) -> None:
        """Send a message and CLOSE, and wait until the client has answered or is gone.

        Args:
            text: JSON text of the message.
            code: close code.
            reason: close reason.
            timeout_s: how long the client may take.
        """
        leg = self._leg
        leg.receiver = self
        if leg.lost:
            return
        leg.write(leg.frame(TEXT, text) + leg.frame(CLOSE, close_payload(code, reason)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._over

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    # --- Receiver -----------------------------------------------------------------------------------

    def data(self, data: bytes) -> None:
        """Only the answer to CLOSE is of interest."""
        try:
            self._scanner.feed(data)
        except FrameError:
            self._end()

    def lost(self, exc: BaseException | None) -> None:
        """The client is gone."""
        self._end()

    def writing(self, *, paused: bool) -> None:
        """A few hundred bytes fit any buffer."""

    # --- Sink ---------------------------------------------------------------------------------------

    def closing(self, code: int, reason: str) -> bool:
        """The answer: the server ends the connection first (RFC 6455 §7.1.1)."""
        self._leg.close()
        self._end()
        return False
