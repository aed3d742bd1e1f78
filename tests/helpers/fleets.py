"""An exchange in memory that fails on command, and processes of a fleet over it, on a clock that moves by hand.

    world = World(2)
    first, second = world.processes
    lease = first.lease("d0")
    await world.beats()
    assert second.deployment("d0").elsewhere.sessions == 1

What is real here: the beat, the gate, pictures, leases, deployments. What stands in: the way between them, so that every
fault of it can be had at the exact moment.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from router.events import Event, Observers
from router.fleet.beat import Fleet
from router.fleet.board import Board
from router.fleet.exchange import Heard, Wanted
from router.fleet.picture import Picture, Vector, decode, encode
from router.pool import Deployment, Lease, Pool
from router.tasks import Tasks
from tests.helpers.clock import ManualClock
from tests.helpers.running import config_of, deployment_of, load_config

#: ``up``: it answers. ``down``: nothing arrives there. ``deaf``: what is asked is done, and the answer is lost. ``frozen``: it
#: neither answers nor fails.
Condition = Literal["up", "down", "deaf", "frozen"]


class Down(ConnectionError):
    """The exchange is not there, as far as this process can see."""


class MemoryExchange:
    """One process's way to a board.

    Args:
        board: shared by all.
        member: this process.
        now_s: the board's clock.
    """

    def __init__(self, board: Board, member: str, now_s: Callable[[], float]) -> None:
        self.board = board
        self.condition: Condition = "up"
        self.interval_s = 1.0
        self.patience_s = 0.05
        self.calls = 0
        # Where calls stop until this is set to nothing again: before they arrive, or on their way back.
        self.stalled: Literal["", "there", "back"] = ""
        self._member = member
        self._now_s = now_s

    async def _go(self) -> None:
        self.calls += 1
        await asyncio.sleep(0)
        if self.condition == "down":
            raise Down("no way to the board")
        if self.condition == "frozen":
            await asyncio.Event().wait()
        await self._stall("there")

    async def _stall(self, where: str) -> None:
        while self.stalled == where:  # noqa: ASYNC110 (there is no event to wait for)
            await asyncio.sleep(0)

    async def _come_back(self) -> None:
        await self._stall("back")
        if self.condition == "deaf":
            raise Down("the answer is lost")

    async def beat(self, share: Mapping[str, Vector], renew: Mapping[str, Sequence[str]]) -> Heard:
        """Publish and hear; the share travels as it does over a wire."""
        await self._go()
        heard = self.board.beat(self._member, decode(encode(share)), renew, now_s=self._now_s())
        await self._come_back()
        return heard

    async def acquire(self, wanted: Sequence[Wanted]) -> Sequence[bool]:
        """Enter places."""
        await self._go()
        granted = self.board.acquire(wanted, now_s=self._now_s(), member=self._member)
        await self._come_back()
        return granted

    async def release(self, places: Mapping[str, Sequence[str]]) -> None:
        """Give places back."""
        await self._go()
        self.board.release(places)
        await self._come_back()

    async def leave(self) -> None:
        """Go."""
        await self._go()
        self.board.remove(self._member)

    async def close(self) -> None:
        """Nothing is open."""


class Process:
    """A member of the fleet with the deployments of the configuration."""

    def __init__(self, world: World, member: str) -> None:
        self.exchange = MemoryExchange(world.board, member, world.board_clock)
        self.events: list[Event] = []
        self.failed: list[tuple[str, Exception]] = []
        self.tasks = Tasks(on_error=lambda name, error: self.failed.append((name, error)))
        tell = Observers([self.events.append])
        self.keys: dict[str, int] = {}
        self.fleet = Fleet(
            self.exchange,
            where="the board",
            member=member,
            deployments=lambda: self.pool.every,
            keys=lambda: self.keys,
            picture=Picture(world.clock),
            on_loss=world.on_loss,
            tasks=self.tasks,
            tell=tell,
            clock=world.clock,
            rng=random.Random(member),
        )
        self.pool = Pool(
            world.settings,
            clock=world.clock,
            rng=random.Random(member),
            tell=tell,
            picture=self.fleet.picture,
            limits=self.fleet.gate,
        )
        self.leases: list[Lease] = []

    def deployment(self, id: str = "d0") -> Deployment:
        """A deployment by its id."""
        return next(item for item in self.pool.deployments if item.id == id)

    def lease(self, id: str = "d0") -> Lease:
        """A session begins, without asking the fleet."""
        lease = self.deployment(id).lease()
        self.leases.append(lease)
        return lease

    async def admit(self, id: str = "d0") -> Lease | None:
        """A session asks for a place, as routing does; ``None``: it was turned away."""
        lease = self.deployment(id).lease()
        if not await self.fleet.gate.admit(lease):
            lease.turned_away()
            return None
        self.leases.append(lease)
        return lease

    def end(self, index: int = -1) -> None:
        """A session ends."""
        self.leases.pop(index).release()

    async def settled(self) -> None:
        """Wait for what the gate does in the background."""
        async with asyncio.timeout(5):
            while len(self.tasks):  # noqa: ASYNC110 (there is no event to wait for)
                await asyncio.sleep(0)


class World:
    """A board and processes that know the same deployments.

    Args:
        processes: how many.
        deployments: how many; ids ``d0``, ``d1``, …
        on_loss: of hard limits.
        params: of every deployment.
    """

    def __init__(
        self, processes: int = 2, *, deployments: int = 1, on_loss: Literal["open", "closed"] = "open", **params: Any
    ) -> None:
        self.clock = ManualClock()
        self.board_clock = ManualClock(50_000.0)
        self.board = Board()
        self.on_loss = on_loss
        entries = [deployment_of("http://127.0.0.1:9/v1", id=f"d{index}", **params) for index in range(deployments)]
        config = config_of(*entries)
        self.settings = load_config(config).settings
        self._started = 0
        self.processes = [self.start() for _ in range(processes)]

    def start(self) -> Process:
        """A process begins."""
        self._started += 1
        return Process(self, f"m{self._started}")

    async def beats(self, rounds: int = 2, *, seconds: float = 1.0) -> None:
        """Let every process beat, in turn, and time pass after each round."""
        for _ in range(rounds):
            for process in self.processes:
                await process.fleet.beat()
            self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass for everybody."""
        self.clock.advance(seconds)
        self.board_clock.advance(seconds)
