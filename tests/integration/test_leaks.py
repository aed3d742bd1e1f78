"""Sessions that are over leave nothing behind: no task, timer, descriptor, lease or object, and memory is flat."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from router.accounting import Accounting
from router.events import SessionRecord
from router.relay.frames import FrameScanner
from router.relay.leg import Leg
from router.relay.relay import Relay
from router.simulator import Simulator
from router.upstream import Upstream
from tests.helpers.raw import CLOSE, TEXT, RawPeer, encode, on_both_loops, raw_client, raw_upstream
from tests.helpers.running import RunningRouter, config_of, running_router

SESSIONS = 500
AT_ONCE = 25
ASK = b'{"type":"conversation.item.create","item":{"type":"message","role":"user","content":[{"type":"input_text","text":"hi"}]}}'
KINDS = (Relay, Leg, FrameScanner, Accounting, Upstream)


def descriptors() -> Counter[str]:
    """What this process has open, by kind: sockets, pipes, files."""
    kinds: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            kinds[os.readlink(f"/proc/self/fd/{name}").split(":")[0]] += 1
        except OSError:
            # The directory's own, gone by now.
            continue
    return kinds


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def objects() -> dict[str, int]:
    """How many of a session's objects live."""
    gc.collect()
    return dict(Counter(type(item).__name__ for item in gc.get_objects() if isinstance(item, KINDS)))


async def one_session(router: RunningRouter, how: str) -> None:
    """Open a session, hold a turn on it, and end it."""
    client = await raw_client(router.port)
    try:
        assert b"session.created" in await client.message()
        await client.text(ASK)
        await client.text(b'{"type":"response.create"}')
        while b'"type":"response.done"' not in await client.message():
            pass
        if how == "close":
            await client.close(1000)
            await client.gone()
        elif how == "reset":
            client.reset()
    finally:
        client.hang_up()


async def batch(router: RunningRouter, count: int) -> None:
    """Sessions one after the other, ``AT_ONCE`` beside each other; nine of ten end politely."""
    left = iter(range(count))

    async def work() -> None:
        for index in left:
            await one_session(router, "close" if index % 10 else "reset" if index % 20 else "leave")

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    await router.idle()


@asynccontextmanager
async def everything_counted(router: RunningRouter, sim: Simulator) -> AsyncIterator[None]:
    """What the block does must leave behind what it found."""
    tasks, open_before = len(asyncio.all_tasks()), descriptors()
    yield
    await sim.stats.wait_until(lambda stats: stats.active == 0)
    # The last connections of aiohttp, and uvloop's closing handles, end within a few turns of the loop.
    await router.until_true(lambda: len(asyncio.all_tasks()) == tasks and descriptors() == open_before)
    assert router.leases == 0
    assert not router.engine.relays
    assert not router.engine._by_principal
    assert len(router.engine.sweep) == 0
    assert router.engine.sweep._handle is None
    assert not router.engine.tasks.names
    await router.until_true(lambda: not objects())


def test_500_sessions_leave_nothing_behind() -> None:
    """After a warm-up, three repeats of sessions with a turn: the same tasks, descriptors and objects, and memory is flat."""

    async def main() -> None:
        async with (
            Simulator(name="sim", reply="Yes.") as sim,
            running_router(config_of(sim), record=False) as router,
        ):
            await batch(router, 50)
            blocks, sizes = [], []
            for _ in range(3):
                async with everything_counted(router, sim):
                    await batch(router, SESSIONS)
                gc.collect()
                blocks.append(sys.getallocatedblocks())
                sizes.append(resident_bytes())
            assert sim.stats.sessions_opened == 50 + 3 * SESSIONS
            # One block kept for each session would be 500; the interpreter's caches move by some dozens.
            assert blocks[2] - blocks[1] < SESSIONS // 2, blocks
            # What C code holds is seen here only. A session kept by mistake is 20 KiB, and 500 of them 10 MiB.
            assert sizes[2] - sizes[1] < 5 * 1024 * 1024, sizes

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@on_both_loops
async def test_sessions_that_end_in_any_way_leave_nothing_behind() -> None:
    """Each way in which a session can end, from either side and in mid-frame: descriptors, timers and objects are back."""
    rng = random.Random(3)
    async with raw_upstream() as server, running_router(config_of(server.api_base), record=False) as router:

        def offend(peer: RawPeer) -> None:
            peer.writer.write(b"\xff\xff\xff")

        def half_frame(peer: RawPeer) -> None:
            peer.writer.write(encode(TEXT, b"x" * 500, masked=peer.masks)[:300])

        def polite(peer: RawPeer) -> None:
            peer.writer.write(encode(CLOSE, b"\x03\xe8", masked=peer.masks))

        ways = [offend, half_frame, polite, RawPeer.reset, RawPeer.hang_up, RawPeer.half_close]

        async def run(count: int) -> None:
            for index in range(count):
                client = await raw_client(router.port)
                upstream = await server.accept()
                first, second = (client, upstream) if index % 2 else (upstream, client)
                ways[index // 2 % len(ways)](first)
                for _ in range(rng.randrange(6)):
                    await asyncio.sleep(0)
                rng.choice([RawPeer.reset, RawPeer.hang_up])(second)
                client.abandon()
                upstream.abandon()
                server.peers.clear()
            await router.idle()

        await run(12)
        tasks, before = len(asyncio.all_tasks()), descriptors()
        await run(72)
        await router.until_true(lambda: len(asyncio.all_tasks()) == tasks and descriptors() == before)
        await router.until_true(lambda: not objects())


@pytest.mark.parametrize("stage", ["dialling", "waiting for the first event", "running"])
@on_both_loops
async def test_a_client_that_leaves_at_any_stage_leaves_nothing_behind(stage: str) -> None:
    """The dial is cancelled with its client, and its connection closed; a lease is held by nobody."""
    faults = {"dialling": ["hang_before_101"], "waiting for the first event": ["hang_after_101"], "running": []}[stage]
    async with Simulator(name="sim", faults=faults) as sim, running_router(config_of(sim)) as router:
        async with everything_counted(router, sim):
            for index in range(10):
                opening = asyncio.create_task(raw_client(router.port))
                await router.until_true(lambda: router.leases == 1)
                if stage == "running":
                    client = await opening
                    client.reset()
                else:
                    await sim.stats.wait_until(lambda stats, index=index: len(stats.requests) == index + 1)  # type: ignore[misc]
                    opening.cancel()
                    await asyncio.wait([opening])
                await router.until(SessionRecord, index + 1)
                await router.idle()
        assert {(record.who, record.cause) for record in router.records} == {("client", "lost")}
        assert router.deployment("sim").breaker.failures == 0


def test_the_counting_notices_a_session() -> None:
    """The control: while a session runs, descriptors and objects are more; what is counted above is there."""

    async def main() -> None:
        async with Simulator() as sim, running_router(config_of(sim)) as router:
            before = descriptors()
            client = await raw_client(router.port)
            # The client's end, the router's two and the simulator's.
            assert (descriptors() - before)["socket"] == 4
            assert objects() == {"Relay": 1, "Leg": 2, "FrameScanner": 2, "Accounting": 1, "Upstream": 1}
            client.abandon()
            await router.idle()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
