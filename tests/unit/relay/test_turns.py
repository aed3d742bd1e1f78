"""The budget of an event loop: however many wait, what they take in one round is bounded, and each has its turn.

Clock and timers are moved by hand.
"""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from router.relay.turns import PAUSE_S, SHARE_S, TURN_S, Turns, turns_of
from tests.helpers.clock import ManualClock
from tests.unit.relay.fakes import Timers

# Neither a divisor of a turn nor of a share.
PIECE_S = 0.7e-3


class Work:
    """Something with work to do.

    Attributes:
        served: the turns of all, in order.
        pieces: how much there is left; each takes ``PIECE_S``.
        flood: how it waits again.
    """

    def __init__(self, place: Place, name: str, *, pieces: int = 10_000, flood: bool = True) -> None:
        self.name = name
        self.pieces = pieces
        self.flood = flood
        self._place = place

    def turn(self, share_s: float) -> None:
        assert share_s == SHARE_S
        self._place.served.append(self.name)
        self._place.clock.advance(PIECE_S)
        self.pieces -= 1
        if self.pieces:
            self._place.turns.wait(self, flood=self.flood)


class Place:
    """Turns with a clock and timers of their own."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.timers = Timers()
        self.turns = Turns(clock=self.clock, cpu_clock=self.clock, call_later=self.timers.call_later)
        self.served: list[str] = []

    def wait(self, *names: str, pieces: int = 10_000, flood: bool = True) -> list[Work]:
        """Let some wait."""
        works = [Work(self, name, pieces=pieces, flood=flood) for name in names]
        for work in works:
            self.turns.wait(work, flood=flood)
        return works

    def round(self) -> list[str]:
        """Who is served when the timer comes, and how often."""
        self.served = []
        assert len(self.timers.set) == 1
        assert self.timers.set[0][0] == PAUSE_S
        self.timers.come()
        return self.served


@pytest.fixture
def place() -> Place:
    """Nobody waits yet."""
    return Place()


@pytest.mark.parametrize("number", [1, 2, 20, 200])
@pytest.mark.parametrize("flood", [True, False])
def test_what_all_take_in_one_round_does_not_depend_on_how_many_there_are(place: Place, number: int, flood: bool) -> None:
    """A bound of each leg's own let twenty of them stop everybody else for twenty turns."""
    place.wait(*map(str, range(number)), flood=flood)
    for _ in range(20):
        started = place.clock()
        assert place.round()
        assert TURN_S <= place.clock() - started < TURN_S + PIECE_S + 1e-9


@pytest.mark.parametrize("flood", [True, False])
def test_all_have_their_turn_round_and_round(place: Place, flood: bool) -> None:
    """Whoever waits again is behind all others, also in the next round."""
    names = list("abcdefghijk")
    place.wait(*names, flood=flood)
    served = [name for _ in range(50) for name in place.round()]
    assert served == (names * 100)[: len(served)]
    assert len(served) > 5 * len(names)


def test_floods_come_behind_all_others_and_at_least_one_a_round(place: Place) -> None:
    """Quick ones never wait for a flood; and however many there are of them, every flood has its turn in time."""
    place.wait("flood 1", "flood 2")
    place.wait("quick", pieces=1, flood=False)
    assert place.round()[:3] == ["quick", "flood 1", "flood 2"]
    place.wait(*map(str, range(100)), flood=False)
    floods = []
    for _ in range(10):
        *others, last = place.round()
        assert others and not any(name.startswith("flood") for name in others)
        floods.append(last)
    assert sorted(set(floods)) == ["flood 1", "flood 2"]
    assert floods.count("flood 1") == floods.count("flood 2")


def test_what_is_charged_is_missing_until_the_pause_is_over(place: Place) -> None:
    """Reads that did not wait share the budget with those that do, and all others their pause, which begins anew each time."""
    assert place.turns.left_s == TURN_S
    place.turns.charge(0.75 * TURN_S)
    assert place.turns.left_s == pytest.approx(TURN_S / 4)
    place.turns.charge(TURN_S)
    assert place.turns.left_s < 0
    assert place.round() == []
    assert place.turns.left_s == TURN_S


def test_nobody_gets_what_a_round_has_used_up(place: Place) -> None:
    """Else reads that do not wait came on top of every round."""
    place.wait("a")
    place.round()
    assert place.turns.left_s <= 0


def test_no_timer_is_left_when_nobody_waits(place: Place) -> None:
    """An idle process has nothing to wake up for."""
    (work,) = place.wait("a")
    place.turns.discard(work)
    assert not place.timers.set
    place.wait("b", "c", pieces=1)
    assert place.round() == ["b", "c"]
    # The budget is made whole again once.
    assert place.round() == []
    assert not place.timers.set
    assert len(place.turns) == 0


def test_waiting_twice_keeps_the_place(place: Place) -> None:
    """In whichever queue it was."""
    first, _ = place.wait("a", "b", pieces=1)
    place.turns.wait(first, flood=True)
    place.turns.wait(first, flood=False)
    assert len(place.turns) == 2
    assert place.round() == ["a", "b"]


def test_whoever_leaves_is_not_served(place: Place) -> None:
    """From the middle of the queue; leaving it twice does nothing, and the others' timer stays."""
    _, second, _ = place.wait("a", "b", "c", pieces=1)
    place.turns.discard(second)
    place.turns.discard(second)
    assert place.round() == ["a", "c"]


def test_leaving_does_not_give_back_what_was_charged(place: Place) -> None:
    """The timer that renews the budget stays as well."""
    (work,) = place.wait("a")
    place.turns.charge(TURN_S)
    place.turns.discard(work)
    assert place.turns.left_s <= 0
    assert place.round() == []
    assert place.turns.left_s == TURN_S


def test_one_that_fails_does_not_end_the_turns_of_others(place: Place) -> None:
    """The error goes to the event loop, whose callback this is."""

    class Broken:
        def turn(self, share_s: float) -> None:
            raise ValueError("broken")

    place.turns.wait(Broken(), flood=True)
    place.wait("a", pieces=1)
    with pytest.raises(ValueError, match="broken"):
        place.round()
    assert place.round() == ["a"]


def test_an_event_loop_has_one_budget_that_goes_with_it() -> None:
    """All sessions of a loop share it, of whichever router; other loops have their own, and none is kept alive by it."""
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        assert turns_of(first) is turns_of(first)
        assert turns_of(first) is not turns_of(second)
    finally:
        first.close()
        second.close()
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None


async def test_the_timer_is_the_running_loops() -> None:
    """Unless another one is given."""
    turns = turns_of(asyncio.get_running_loop())
    done = asyncio.Event()

    class Waits:
        def turn(self, share_s: float) -> None:
            done.set()

    turns.wait(Waits(), flood=False)
    assert not done.is_set()
    async with asyncio.timeout(10):
        await done.wait()
