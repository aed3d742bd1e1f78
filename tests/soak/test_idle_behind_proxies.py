"""Sessions that say nothing for minutes, behind proxies whose time-outs nobody has set."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.helpers.proxies import DEFAULT_TIMEOUTS, PROXIES, backends
from tests.helpers.tls import Authority
from tests.integration.test_behind_proxies import KEY, front, greeted, turn
from tests.integration.test_clients import REPLY, SPOKEN

pytestmark = pytest.mark.soak

IDLE_S = 180.0


async def test_a_session_that_is_idle_for_3_minutes_survives_the_default_time_outs(tmp_path: Path) -> None:
    """Behind each proxy a session that said nothing for three minutes holds a turn: the router's pings, as they are by default.

    nginx ends a connection after 60 s without a byte, and Envoy after five minutes; HAProxy has no such default of its own, so it
    gets the 50 s of the file that distributions ship; Caddy has none.
    """
    authority = Authority(tmp_path / "authority")
    async with AsyncExitStack() as stack:
        behind = stack.enter_context(backends(tmp_path, key=KEY, reply=REPLY))
        await behind.accepting()
        sessions = []
        for kind in sorted(PROXIES):
            proxy = await stack.enter_async_context(
                front(kind, behind.ports, authority, tmp_path, edits=DEFAULT_TIMEOUTS[kind])
            )
            sessions.append(await stack.enter_async_context(proxy.connect()))
            await greeted(sessions[-1])
        await asyncio.sleep(IDLE_S)
        for session in sessions:
            assert await turn(session) == SPOKEN
