"""One clock for all sessions: it ticks while there are members, and no member can stop it."""

from __future__ import annotations

import asyncio
from typing import Any

from router.relay.sweep import Sweep
from tests.helpers.clock import ManualClock


class Member:
    """Counts its ticks; may leave, or fail, at one of them."""

    def __init__(self, sweep: Sweep) -> None:
        self.times: list[float] = []
        self.ticked = asyncio.Event()
        self.leaves = False
        self.fails = False
        self._sweep = sweep

    def tick(self, now: float) -> None:
        self.times.append(now)
        self.ticked.set()
        if self.leaves:
            self._sweep.discard(self)
        if self.fails:
            raise ValueError("a fault of this session")


async def test_every_member_is_told_the_time() -> None:
    """All of them in a pass, with the same reading of the clock."""
    clock = ManualClock(5.0)
    sweep = Sweep(clock=clock, interval_s=0.001)
    members = [Member(sweep) for _ in range(3)]
    for member in members:
        sweep.add(member)
    await members[2].ticked.wait()
    assert [member.times for member in members] == [[5.0]] * 3
    assert len(sweep) == 3
    for member in members:
        sweep.discard(member)


async def test_there_is_no_timer_without_members() -> None:
    """The last one that leaves takes the timer along, be it from within its own tick."""
    sweep = Sweep(clock=ManualClock(), interval_s=0.001)
    assert sweep._handle is None
    member = Member(sweep)
    sweep.add(member)
    assert sweep._handle is not None
    sweep.discard(member)
    sweep.discard(member)
    assert sweep._handle is None
    member.leaves = True
    sweep.add(member)
    await member.ticked.wait()
    assert len(sweep) == 0
    assert sweep._handle is None
    # It starts again.
    other = Member(sweep)
    sweep.add(other)
    await other.ticked.wait()
    sweep.discard(other)


async def test_a_member_that_fails_does_not_stop_the_clock_of_the_others() -> None:
    """What a tick raised ended the pass and no other was ever scheduled: no session had a time limit any more."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    sweep = Sweep(clock=ManualClock(), interval_s=0.001)
    bad, good = Member(sweep), Member(sweep)
    bad.fails = True
    sweep.add(bad)
    sweep.add(good)
    for _ in range(3):
        good.ticked.clear()
        await good.ticked.wait()
    sweep.discard(bad)
    sweep.discard(good)
    assert len(good.times) >= 3
    assert {type(context["exception"]) for context in reported} == {ValueError}
