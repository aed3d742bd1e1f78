"""A fleet as a state machine: whatever happens to its processes and to what lies between them, quiet heals it.

Processes are started, take sessions with and without hard limits, end them, are killed and stopped; calls are lost on the
way there and on the way back; the exchange is emptied and its clock jumps. The real beat, gate, pictures and deployments
run; only the way between them and the clocks are in memory (``tests/helpers/fleets.py``).
``tests/integration/test_redis_link.py`` holds real servers against the same board.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from typing import Any, Literal, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router.fleet.board import CLOCK_SLACK_S, PLACE_TTL_S, SHARE_TTL_S
from strategies.base import Freshness
from tests.helpers.fleets import Condition, Process, World

T = TypeVar("T")
# ``d0`` has no limit; the others have one across the fleet.
DEPLOYMENTS = ("d0", "d1")
LIMIT = 6
WHICH = st.integers(0, 9)


async def some_turns() -> None:
    """Let what is under way get as far as it can."""
    for _ in range(12):
        await asyncio.sleep(0)


class FleetMachine(RuleBasedStateMachine):
    """Everything that can happen to a fleet."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.faults = False  # anything that may let a hard limit be exceeded
        self.beating: dict[Process, asyncio.Task[bool]] = {}

    def run(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run to the end, with whatever it left in the background and is not stalled."""

        async def settle() -> T:
            result = await coro
            for process in self.world.processes:
                if not process.exchange.stalled:
                    await process.settled()
            await some_turns()
            return result

        return self.loop.run_until_complete(settle())

    @initialize(processes=st.integers(1, 4), closed=st.booleans())
    def begin(self, processes: int, closed: bool) -> None:
        """A few processes."""
        self.world = World(processes, deployments=2, on_loss="closed" if closed else "open", max_sessions=LIMIT)
        self.run(self._beats(self.world.processes))

    def process(self, which: int) -> Process:
        """One of the living."""
        return self.world.processes[which % len(self.world.processes)]

    # --- sessions -----------------------------------------------------------------------------------

    @rule(which=WHICH, count=st.integers(1, 8))
    def connect(self, which: int, count: int) -> None:
        """Sessions begin at once, on the deployment whose limit is not asked about."""
        process = self.process(which)
        for _ in range(count):
            process.lease("d0")

    @rule(which=WHICH, count=st.integers(1, 8))
    def ask(self, which: int, count: int) -> None:
        """Sessions ask for a place at the same time."""

        async def all_at_once() -> None:
            process = self.process(which)
            await asyncio.gather(*(process.admit("d1") for _ in range(count)))

        self.run(all_at_once())

    @rule(which=WHICH, index=WHICH)
    def end(self, which: int, index: int) -> None:
        """A session ends."""
        process = self.process(which)

        async def end() -> None:
            if process.leases:
                process.end(index % len(process.leases))

        self.run(end())

    # --- time and beats -----------------------------------------------------------------------------

    @rule(which=WHICH)
    def beat(self, which: int) -> None:
        """One process beats, if its last beat is over."""
        self.run(self._beats([self.process(which)]))

    async def _beats(self, processes: list[Process]) -> None:
        for process in processes:
            task = self.beating.get(process)
            if task is None or task.done():
                task = self.beating[process] = self.loop.create_task(process.fleet.beat())
            await some_turns()
            if not process.exchange.stalled:
                await task

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 20.0]), rounds=st.integers(1, 3))
    def time_passes(self, seconds: float, rounds: int) -> None:
        """With beats, or, for a long time, without any: every process was stopped."""
        if seconds > 1.0:
            self.faults = True
            self.world.advance(seconds)
        else:
            for _ in range(rounds):
                self.run(self._beats(self.world.processes))
                self.world.advance(seconds)

    # --- faults -------------------------------------------------------------------------------------

    @rule(which=WHICH, condition=st.sampled_from(["up", "down", "deaf"]))
    def way(self, which: int, condition: Condition) -> None:
        """The way between a process and the exchange breaks, in one direction or both, or is mended."""
        self.faults = self.faults or condition != "up"
        self.process(which).exchange.condition = condition

    @rule(which=WHICH, where=st.sampled_from(["there", "back"]))
    def stall(self, which: int, where: Literal["there", "back"]) -> None:
        """What a process asks for hangs, on its way there or back, while life goes on."""
        self.faults = True
        self.process(which).exchange.stalled = where

    @rule(which=WHICH)
    def go_on(self, which: int) -> None:
        """It arrives at last."""
        self.process(which).exchange.stalled = ""
        self.run(some_turns())

    @precondition(lambda self: len(self.world.processes) > 1)
    @rule(which=WHICH)
    def crash(self, which: int) -> None:
        """A process is killed: nobody is told, its sessions are over."""
        process = self.process(which)
        self.world.processes.remove(process)
        self.loop.run_until_complete(self._kill(process))

    async def _kill(self, process: Process) -> None:
        process.exchange.condition = "down"
        process.exchange.stalled = ""
        task = self.beating.pop(process, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await process.tasks.close(timeout_s=1)

    @precondition(lambda self: len(self.world.processes) < 5)
    @rule()
    def start(self) -> None:
        """Another process begins."""
        process = self.world.start()
        self.world.processes.append(process)
        # Nobody is let in before the first beat.
        self.run(self._beats([process]))

    @rule()
    def emptied(self) -> None:
        """The exchange loses everything, as a server that is started again without a disk."""
        self.faults = True
        self.world.board.clear()

    @rule(seconds=st.sampled_from([-7200.0, -10.0, -1.0, 1.0, 10.0, 7200.0]))
    def jump(self, seconds: float) -> None:
        """The exchange's clock is set."""
        self.faults = True
        self.world.board_clock.advance(seconds)

    # --- what holds ---------------------------------------------------------------------------------

    @invariant()
    def nothing_is_negative(self) -> None:
        """No count ever falls below zero, nobody sees more than exists or ever existed, no task failed."""
        for process in self.world.processes:
            assert not process.failed
            for deployment in process.pool.deployments:
                held = deployment.elsewhere
                assert deployment.sessions >= 0
                assert min(held.sessions, held.members, held.starts, held.ejected) >= 0
                assert math.isfinite(deployment.minute_starts) and deployment.minute_starts >= 0
            assert sum(process.fleet.gate.held.values()) <= len(process.leases)

    @invariant()
    def the_limit_holds(self) -> None:
        """While nothing goes wrong, not one more than the limit is let in, in the fleet as a whole."""
        if not self.faults:
            held = sum(process.deployment("d1").sessions for process in self.world.processes)
            assert held <= LIMIT

    @rule()
    def quiet(self) -> None:
        """All ways mended and time for entries to end: the sum that each sees is the truth, and so are the places."""
        for process in self.world.processes:
            process.exchange.condition = "up"
            process.exchange.stalled = ""
        for task in self.beating.values():
            self.loop.run_until_complete(asyncio.wait([task]))
        self.run(self.world.beats(int(SHARE_TTL_S + CLOCK_SLACK_S) + 1))
        for process in self.world.processes:
            assert process.fleet.picture.freshness is Freshness.FRESH
            assert process.fleet.picture.members == len(self.world.processes) - 1
            for id in DEPLOYMENTS:
                truth = sum(other.deployment(id).sessions for other in self.world.processes)
                assert process.deployment(id).sessions + process.deployment(id).elsewhere.sessions == truth
        self.run(self.world.beats(int(PLACE_TTL_S + CLOCK_SLACK_S) + 1))
        held = {place for process in self.world.processes for lease in process.leases if (place := lease.place)}
        assert self.world.board.places("d1", now_s=self.world.board_clock()) == held

    def teardown(self) -> None:
        """The end is a quiet one."""
        if hasattr(self, "world"):
            self.quiet()
            for process in self.world.processes:
                self.loop.run_until_complete(self._kill(process))
        self.loop.close()


TestFleet = FleetMachine.TestCase
TestFleet.settings = settings(stateful_step_count=40)
