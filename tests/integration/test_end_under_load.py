"""A router is asked to end while people talk."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from tests.helpers.edits import under_load
from tests.helpers.processes import PATIENCE_S, RouterProcess
from tests.helpers.running import MODEL

GRACE_S = 2.0
TIMEOUT_S = 6.0
SESSIONS = 50
# Calls that do not end by themselves in time.
LONG = 10


class Newcomers:
    """Clients that connect one after the other until nobody answers any more."""

    def __init__(self, router: RouterProcess) -> None:
        self.served: list[float] = []
        self.refused: list[float] = []
        self.retry_after: set[str] = set()
        self.other: list[str] = []
        self._url = router.url(MODEL)
        self._router = router

    async def run(self) -> None:
        """Until the process is gone."""
        loop = asyncio.get_running_loop()
        while self._router.alive:
            try:
                async with asyncio.timeout(PATIENCE_S), connect(self._url, proxy=None, compression=None) as ws:
                    self.served.append(loop.time())
                    await ws.send('{"type": "x"}')
                    await ws.recv()
            except InvalidStatus as error:
                if error.response.status_code == 503:
                    self.refused.append(loop.time())
                    self.retry_after.add(error.response.headers["Retry-After"])
                else:
                    self.other.append(f"status {error.response.status_code}")
            except (OSError, InvalidHandshake, ConnectionClosed, TimeoutError) as error:
                # The end of the process is in the middle of something for somebody.
                if self._router.lines("stopping"):
                    return
                self.other.append(repr(error))
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("workers", [1, 2])
async def test_who_hangs_up_in_time_notices_nothing(tmp_path: Path, workers: int) -> None:
    """Nobody is accepted after the grace; calls that end within the time limit end by themselves; the others are told."""
    general = {"workers": workers, "drain": {"grace_s": GRACE_S, "timeout_s": TIMEOUT_S}}
    loop = asyncio.get_running_loop()
    rng = random.Random(3)
    async with under_load(tmp_path, SESSIONS, general=general) as (router, through, _, _, _):
        newcomers = Newcomers(router)
        knocking = asyncio.create_task(newcomers.run())
        asked_at = loop.time()
        router.signal(signal.SIGTERM)
        for call in through.all[LONG:]:
            loop.call_later(rng.uniform(0.0, GRACE_S + TIMEOUT_S - 2.0), setattr, call, "stopping", True)
        await router.logged("new sessions are refused")
        refused_from = loop.time()
        code = await router.end()
        await knocking
        assert code == 0
        assert loop.time() - asked_at >= GRACE_S + TIMEOUT_S, "somebody talked to the end"
        assert newcomers.other == []
        assert newcomers.served and newcomers.refused and max(newcomers.served) <= refused_from + 1.0
        assert min(newcomers.refused) >= asked_at + GRACE_S and newcomers.retry_after <= {"1", "2", "3", "4", "5"}
        ended = through.ended
        assert through.harmed == [] and len(ended) == LONG
        assert {call.code for call in ended} == {1001}
        assert all(call.events[-1] == "error" for call in ended)
        last = router.lines("stopped")[-1]
        assert last["ended"] == LONG
        # Newcomers of the grace are among those who ended by themselves.
        assert last["by_themselves"] >= SESSIONS - LONG
