"""The event loop that the router's own processes run on: uvloop where there is one, else asyncio's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

try:
    import uvloop
except ImportError:  # not made for every platform
    new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
else:

    class _Loop(uvloop.Loop):
        """uvloop without a detour: its ``sock_connect`` asks a thread to resolve what is an address already.

        It calls ``getaddrinfo`` without a type of socket, and uvloop's short cut for addresses wants one. Five switches between
        threads for each dial are a tenth of what a session costs.
        """

        async def getaddrinfo(
            self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
        ) -> Any:
            return await super().getaddrinfo(
                host, port, family=family, type=type or socket.SOCK_STREAM, proto=proto, flags=flags
            )

    new_event_loop = _Loop

__all__ = ["new_event_loop"]
