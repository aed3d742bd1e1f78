"""The exchange through the parent, on both ends of a channel: the same answers as the board it stands for."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from router.fleet.board import Board
from router.fleet.exchange import Heard, Wanted
from router.fleet.picture import encode as encode_share
from router.fleet.picture import vector
from router.workers import exchange
from router.workers.channel import ChannelLost, Frames, Message, WorkerEnd, encode
from router.workers.exchange import ParentExchange

Answer = Callable[[dict[str, Any]], dict[str, Any] | None]


class Deaf:
    """A worker that is told nothing."""

    def told_to(self, what: str, number: int, args: Mapping[str, Any]) -> None:
        """Nobody asks."""
        raise AssertionError(what)

    def ordered(self, message: Message) -> None:
        """Nobody orders anything."""
        raise AssertionError(message)

    def parent_gone(self) -> None:
        """Nothing to do."""


class Acted:
    """A parent that answers by a function."""

    def __init__(self) -> None:
        self.answer: Answer = dict
        self.asked: list[dict[str, Any]] = []

    async def run(self, sock: socket.socket) -> None:
        """Answer until the worker is gone."""
        loop, frames = asyncio.get_running_loop(), Frames()
        while data := await loop.sock_recv(sock, 65536):
            for message in frames.feed(data):
                self.asked.append(dict(message))
                answer = self.answer(dict(message))
                if answer is not None:
                    await loop.sock_sendall(sock, encode({"k": "answer", "id": message["id"], **answer}))


@pytest.fixture
async def parent() -> AsyncIterator[tuple[ParentExchange, Acted]]:
    """An exchange and the parent that it speaks to."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    end, acted = await WorkerEnd.open(ours, Deaf()), Acted()
    running = asyncio.create_task(acted.run(theirs))
    yield ParentExchange(end), acted
    await end.close(timeout_s=1.0)
    await running
    theirs.close()


async def test_it_says_what_it_is_asked_to_and_believes_what_it_hears(parent: tuple[ParentExchange, Acted]) -> None:
    """Shares and places go out, the sum of the others comes in."""
    through, acted = parent
    board = Board()
    board.beat("other", {"d:a": vector(sessions=3)}, {}, now_s=5.0)

    def answer(message: dict[str, Any]) -> dict[str, Any]:
        heard = board.beat("me", {"d:a": vector(sessions=1)}, {}, now_s=6.0)
        facts = {"now_s": heard.now_s, "known": heard.known}
        return {**facts, "members": heard.members, "totals": encode_share(heard.totals).decode()}

    acted.answer = answer
    heard = await through.beat({"d:a": vector(sessions=1)}, {"a": ["me:1"]})
    assert heard == Heard(now_s=6.0, known=False, members=1, totals={"d:a": vector(sessions=3)})
    (asked,) = acted.asked
    assert (asked["what"], asked["renew"]) == ("beat", {"a": ["me:1"]})


async def test_places(parent: tuple[ParentExchange, Acted]) -> None:
    """Each question gets as many answers as places were asked for; giving back and leaving are told."""
    through, acted = parent
    acted.answer = lambda message: {"granted": [True, False]} if message["what"] == "acquire" else {}
    wanted = [Wanted(deployment="a", limit=1, place=f"me:{number}") for number in (1, 2)]
    assert await through.acquire(wanted) == [True, False]
    await through.release({"a": ["me:1"]})
    await through.leave()
    await through.close()
    assert [message["what"] for message in acted.asked] == ["acquire", "release", "leave"]
    assert acted.asked[0]["wanted"] == [["a", 1, "me:1"], ["a", 1, "me:2"]]
    assert acted.asked[1]["places"] == {"a": ["me:1"]}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"now_s": "1", "known": True, "members": 1, "totals": "{}"},
        {"now_s": 1.0, "known": True, "members": None, "totals": "{}"},
        {"now_s": 1.0, "known": True, "members": 1, "totals": {}},
        {"now_s": 1.0, "known": True, "members": 1, "totals": "[]"},
        {"now_s": 1.0, "known": True, "members": 1, "totals": "nonsense"},
        {"now_s": 1.0, "known": 1, "members": 1, "totals": "{}"},
        {"now_s": 1.0, "members": 1, "totals": "{}"},
        {"granted": [True]},
        {"granted": [1, 0]},
        {"granted": "tt"},
        {"error": "no"},
    ],
)
async def test_a_senseless_answer_is_a_failure(parent: tuple[ParentExchange, Acted], answer: dict[str, Any]) -> None:
    """Whoever asks takes it for "not reachable", and never for a number."""
    through, acted = parent
    acted.answer = lambda message: answer
    with pytest.raises(ChannelLost):
        await through.beat({}, {})
    with pytest.raises(ChannelLost):
        await through.acquire([Wanted(deployment="a", limit=1, place=f"me:{number}") for number in (1, 2)])


async def test_a_parent_that_does_not_answer(parent: tuple[ParentExchange, Acted], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call has a bound of its own."""
    monkeypatch.setattr(exchange, "TIMEOUT_S", 0.01)
    through, acted = parent
    acted.answer = lambda message: None
    for call in (through.beat({}, {}), through.acquire([]), through.release({}), through.leave()):
        with pytest.raises(TimeoutError):
            await call


def test_the_board_forgets_a_member_that_died() -> None:
    """Its share and its places go at once, those of a member with a longer name stay."""
    board = Board()
    for member in ("1-a", "1-ab"):
        board.beat(member, {"d:x": vector(sessions=2)}, {"x": [f"{member}:1"], "y": [f"{member}:2"]}, now_s=1.0)
    board.evict("1-a")
    assert board.beat("me", {}, {}, now_s=1.5) == Heard(now_s=1.5, known=False, members=1, totals={"d:x": vector(sessions=2)})
    wanted = [Wanted(deployment="x", limit=2, place=f"me:{number}") for number in (1, 2)]
    assert board.acquire(wanted, now_s=1.5) == [True, False]
