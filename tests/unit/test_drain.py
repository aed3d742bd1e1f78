"""The stages of an end, and what counts as a quiet moment of a session."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.accounting import Accounting
from router.config.settings import DrainSettings
from router.drain import MOST_RETRY_AFTER_S, QUIET_S, STOP_TIMEOUT_S, Drain
from router.relay.contract import Side
from router.relay.frames import TEXT
from router.succession import deal
from router.workers.parent import KILL_AFTER_S
from tests.helpers.clock import ManualClock

SETTINGS = DrainSettings(grace_s=5, timeout_s=600)


@pytest.fixture
def clock() -> ManualClock:
    """Moves by hand."""
    return ManualClock()


@pytest.fixture
def drain(clock: ManualClock) -> Drain:
    """A router that serves."""
    return Drain(clock)


# --- stages --------------------------------------------------------------------------------------


def test_nothing_ends_that_nobody_asked_to_end(drain: Drain, clock: ManualClock) -> None:
    """An idle router serves for ever."""
    clock.advance(1e9)
    assert drain.look(idle=True) == "serving"
    assert (drain.wakes_at, drain.left_s) == (math.inf, math.inf)


def test_the_grace_is_kept_although_nobody_is_there(drain: Drain, clock: ManualClock) -> None:
    """Load balancers send sessions until they have noticed, so an idle process must stay for them."""
    drain.signalled(SETTINGS, grace=True)
    assert drain.look(idle=True) == "grace"
    assert drain.wakes_at == clock() + 5
    clock.advance(4.9)
    assert drain.look(idle=True) == "grace"
    clock.advance(0.1)
    assert drain.look(idle=False) == "refusing"
    assert drain.wakes_at == clock() + 600
    assert drain.look(idle=True) == "ending"
    assert not drain.at_once


def test_the_timeout_begins_when_the_grace_is_over(drain: Drain, clock: ManualClock) -> None:
    """Running sessions have all of it, and not a second more."""
    drain.signalled(SETTINGS, grace=True)
    clock.advance(604.9)
    assert drain.look(idle=False) == "refusing"
    clock.advance(0.1)
    assert drain.look(idle=False) == "ending"


def test_without_grace_and_sessions_it_ends_at_the_next_look(drain: Drain) -> None:
    """Ctrl-C in a terminal."""
    drain.signalled(SETTINGS, grace=False)
    assert drain.look(idle=True) == "ending"


@pytest.mark.parametrize("pass_s", [0.0, 6.0])
def test_a_second_signal_ends_at_once_from_anywhere(drain: Drain, clock: ManualClock, pass_s: float) -> None:
    """In the grace as well as after it; which of the two signals came first does not matter."""
    drain.signalled(SETTINGS, grace=True)
    clock.advance(pass_s)
    drain.look(idle=False)
    drain.signalled(SETTINGS, grace=False)
    assert drain.look(idle=False) == "ending"
    assert drain.at_once


def test_a_second_signal_cuts_the_wait_for_quiet_moments_short(drain: Drain) -> None:
    """While the rest is being ended there is still something to hurry."""
    drain.signalled(DrainSettings(grace_s=0, timeout_s=0), grace=True)
    assert drain.look(idle=False) == "ending"
    assert not drain.at_once
    drain.signalled(SETTINGS, grace=True)
    assert drain.at_once


def test_with_a_successor_there_is_no_grace_and_a_signal_does_not_hurry(drain: Drain, clock: ManualClock) -> None:
    """The supervisor's SIGTERM to an old router that drains already is no second one."""
    drain.handed_over(SETTINGS)
    assert drain.look(idle=False) == "leaving"
    clock.advance(100)
    drain.signalled(SETTINGS, grace=True)
    assert drain.look(idle=False) == "leaving"
    assert drain.left_s == 500
    drain.signalled(SETTINGS, grace=True)
    assert (drain.look(idle=False), drain.at_once) == ("ending", True)


def test_a_successor_gives_a_draining_router_no_more_time(drain: Drain, clock: ManualClock) -> None:
    """A supervisor waits for grace and timeout from the signal on."""
    drain.signalled(SETTINGS, grace=True)
    clock.advance(300)
    assert drain.look(idle=False) == "refusing"
    drain.handed_over(SETTINGS)
    assert drain.look(idle=False) == "leaving"
    assert drain.left_s == 305


def test_sockets_that_are_kept_need_nobody_to_refuse(drain: Drain) -> None:
    """Whoever connects waits in systemd's queue for the next process."""
    drain.signalled(SETTINGS, grace=True, kept=True)
    assert drain.look(idle=False) == "leaving"


def test_orders_never_lead_back(drain: Drain, clock: ManualClock) -> None:
    """Of a parent's orders a late one of an earlier stage changes nothing."""
    drain.ordered("refusing", 60.0)
    drain.ordered("grace", 600.0)
    assert (drain.look(idle=False), drain.left_s) == ("refusing", 60.0)
    drain.ordered("ending", 0.0)
    drain.ordered("ending", 0.0, at_once=True)
    assert drain.at_once


def test_an_orphan_goes_on_without_a_limit_until_a_signal(drain: Drain, clock: ManualClock) -> None:
    """The parent is gone: sessions run to their ends, and an operator may ask for less."""
    drain.orphaned()
    clock.advance(1e6)
    assert drain.look(idle=False) == "leaving"
    drain.signalled(SETTINGS, grace=True, kept=True)
    assert drain.left_s == 600
    assert drain.look(idle=True) == "ending"


def test_what_a_refused_client_is_told_is_sensible(drain: Drain, clock: ManualClock) -> None:
    """A few seconds at most, for another replica is there at once; at the very end no less than one."""
    drain.signalled(SETTINGS, grace=False)
    assert drain.retry_after_s == MOST_RETRY_AFTER_S
    clock.advance(597)
    assert drain.retry_after_s == 3
    clock.advance(3)
    assert drain.retry_after_s == 1


def test_all_ends_within_what_supervisors_are_told() -> None:
    """``grace_s`` + ``timeout_s`` + 10: the end's own parts, and the parent's patience with a worker that hangs, fit into it."""
    assert QUIET_S + STOP_TIMEOUT_S < KILL_AFTER_S < 10


# --- sharing sockets out -------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 12))
def test_every_socket_is_accepted_from_and_all_workers_have_as_many(sockets: int, workers: int) -> None:
    """Whatever both numbers are; one that nobody accepted from would collect connections for ever."""
    dealt = deal(range(sockets), workers)
    assert len(dealt) == workers
    assert {sock for own in dealt for sock in own} == set(range(sockets))
    assert len({len(own) for own in dealt}) == 1
    assert all(len(set(own)) == len(own) > 0 for own in dealt)


def test_as_many_sockets_as_workers_are_one_each() -> None:
    """The usual case is the one without any sharing."""
    assert deal("abc", 3) == [["a"], ["b"], ["c"]]
    assert deal("abcd", 2) == [["a", "c"], ["b", "d"]]
    assert deal("abc", 2) == [["a", "c"], ["b", "c"]]
    assert deal("ab", 3) == [["a", "b"]] * 3


# --- quiet moments -------------------------------------------------------------------------------


def _nobody(*told: object) -> None:
    """Who is told."""


def _books(clock: ManualClock) -> Accounting:
    return Accounting(
        clock=clock, on_usage=_nobody, on_first_audio=_nobody, on_trouble=_nobody, on_limits=_nobody, on_tick=_nobody
    )


def _told(books: Accounting, *events: tuple[Side, str] | tuple[Side, str, dict[str, Any]]) -> bool:
    for side, kind, *more in events:
        payload = orjson.dumps({"type": kind, **(more[0] if more else {})})
        books.message(side, TEXT, kind, len(payload), payload)
    return books.quiet


CREATED: tuple[Side, str] = ("upstream", "response.created")
DONE: tuple[Side, str, dict[str, Any]] = ("upstream", "response.done", {"response": {"id": "r1"}})
APPEND: tuple[Side, str] = ("client", "input_audio_buffer.append")


def test_a_session_is_quiet_between_turns(clock: ManualClock) -> None:
    """Not from the moment an answer is asked for until it is done."""
    books = _books(clock)
    assert books.quiet
    assert not _told(books, ("client", "response.create"))
    assert not _told(books, CREATED)
    assert _told(books, DONE)


def test_a_refused_answer_is_no_longer_waited_for(clock: ManualClock) -> None:
    """Its ``error`` is all that comes."""
    assert _told(_books(clock), ("client", "response.create"), ("upstream", "error", {"error": {"code": "x"}}))


def test_a_user_who_speaks_is_not_interrupted(clock: ManualClock) -> None:
    """From the provider's ``speech_started`` to the end of the answer; microphone noise without it is nobody's speech."""
    books = _books(clock)
    assert _told(books, APPEND, APPEND)
    assert not _told(books, ("upstream", "input_audio_buffer.speech_started"))
    assert not _told(books, APPEND, ("upstream", "input_audio_buffer.speech_stopped"))
    assert not _told(books, ("upstream", "input_audio_buffer.committed"))
    assert not _told(books, CREATED)
    assert _told(books, APPEND, DONE)


def test_push_to_talk_is_heard_by_what_is_not_committed_yet(clock: ManualClock) -> None:
    """A client that commits itself speaks when it has sent sound since then."""
    books = _books(clock)
    commit: tuple[Side, str] = ("client", "input_audio_buffer.commit")
    assert _told(books, APPEND, commit, ("client", "response.create"), CREATED, DONE)
    assert not _told(books, APPEND)
    assert _told(books, ("client", "input_audio_buffer.clear"))
    assert not _told(books, APPEND, commit, CREATED)
    assert _told(books, ("upstream", "response.done", {"response": {"id": "r2"}}))
