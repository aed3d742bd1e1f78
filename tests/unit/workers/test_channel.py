"""Messages between a worker and its parent: framing, bounds, and ends that vanish."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.workers import channel
from router.workers.channel import MAX_FRAME_BYTES, BadFrame, ChannelLost, Frames, Message, ParentEnd, Stuck, WorkerEnd, encode
from tests.helpers.processes import PATIENCE_S
from tests.helpers.running import until

MESSAGES = st.lists(st.dictionaries(st.text(max_size=5), st.integers(-(2**53), 2**53) | st.text(max_size=20)), max_size=6)


@given(messages=MESSAGES, cuts=st.lists(st.integers(1, 9), min_size=1))
def test_messages_arrive_however_they_are_cut(messages: list[dict[str, Any]], cuts: list[int]) -> None:
    """What is sent comes out, one by one and in order, in whatever pieces the socket gives it."""
    stream = b"".join(map(encode, messages))
    frames, got, at, turn = Frames(), [], 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        got += frames.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert got == messages


@pytest.mark.parametrize(
    "stream",
    [
        struct.pack("!I", MAX_FRAME_BYTES + 1),
        b"\xff\xff\xff\xff",
        struct.pack("!I", 2) + b"[]",
        struct.pack("!I", 3) + b"nul",
        struct.pack("!I", 0),
        struct.pack("!I", 4) + b"null",
    ],
)
def test_what_is_no_message(stream: bytes) -> None:
    """A length beyond the bound is refused before a byte of it is kept; so is what is no JSON object."""
    with pytest.raises(BadFrame):
        Frames().feed(stream)


def test_what_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that is too long, or not of JSON's types, fails where it is made."""
    with pytest.raises(BadFrame, match="plain JSON"):
        encode({"x": object()})
    monkeypatch.setattr(channel, "MAX_FRAME_BYTES", 100)
    with pytest.raises(BadFrame, match="at most 100"):
        encode({"x": "y" * 100})


# --- the parent's end ----------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[ParentEnd, socket.socket]]:
    """The parent's end and a bare socket at the worker's."""
    ours, theirs = socket.socketpair()
    end = ParentEnd(ours, most_unread_bytes=2 * 1024 * 1024)
    with ours, theirs:
        theirs.settimeout(PATIENCE_S)
        yield end, theirs


def test_a_worker_that_does_not_read_blocks_nobody(pair: tuple[ParentEnd, socket.socket]) -> None:
    """What the socket does not take waits, in order, up to the bound; then the worker is stuck."""
    end, theirs = pair
    sent = 0
    with pytest.raises(Stuck):
        while True:
            end.send({"number": sent, "padding": "x" * 10_000})
            sent += 1
    assert end.wants_write
    assert 200 < sent < 1000
    frames = Frames()
    got: list[Any] = []
    while len(got) < sent:
        got += frames.feed(theirs.recv(256 * 1024))
        end.flush()
    assert [message["number"] for message in got] == list(range(sent))
    assert not end.wants_write


def test_a_worker_that_is_gone(pair: tuple[ParentEnd, socket.socket]) -> None:
    """Its last words can be read after its end, what is sent to it goes nowhere, and nothing raises."""
    end, theirs = pair
    theirs.sendall(encode({"last": 1}) + encode({"last": 2}) + encode({"half": 3})[:-1])
    theirs.close()
    end.send({"to": "nobody"})
    assert end.drain() == [{"last": 1}, {"last": 2}]
    assert end.receive() == []
    assert end.ended
    end.send({"to": "nobody"})
    assert not end.wants_write


def test_nothing_to_read_is_no_end(pair: tuple[ParentEnd, socket.socket]) -> None:
    """A selector that wakes for nothing."""
    end, _ = pair
    assert end.receive() == []
    assert not end.ended


# --- the worker's end ----------------------------------------------------------------------------


class Hearing:
    """What a worker was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, Mapping[str, Any]]] = []
        self.orders: list[Message] = []
        self.gone = asyncio.Event()

    def told_to(self, what: str, number: int, args: Mapping[str, Any]) -> None:
        """Note it."""
        self.told.append((what, number, args))

    def ordered(self, message: Message) -> None:
        """Note it."""
        self.orders.append(message)

    def parent_gone(self) -> None:
        """Note it."""
        assert not self.gone.is_set(), "told twice"
        self.gone.set()


class Linked:
    """A worker's end, and the parent's bare socket."""

    def __init__(self, end: WorkerEnd, parent: socket.socket, hearing: Hearing) -> None:
        self.end = end
        self.parent = parent
        self.hearing = hearing
        self._frames = Frames()
        self._got: list[Any] = []

    async def next(self) -> Any:
        """The next message that the worker sent."""
        async with asyncio.timeout(PATIENCE_S):
            while not self._got:
                data = await asyncio.get_running_loop().sock_recv(self.parent, 65536)
                assert data, "the worker closed its end"
                self._got += self._frames.feed(data)
        return self._got.pop(0)

    def say(self, message: dict[str, Any]) -> None:
        """Send as the parent."""
        self.parent.send(encode(message))


@pytest.fixture
async def linked() -> AsyncIterator[Linked]:
    """Both ends."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    hearing = Hearing()
    end = await WorkerEnd.open(ours, hearing)
    yield Linked(end, theirs, hearing)
    await end.close(timeout_s=1.0)
    theirs.close()


async def test_answers_find_their_questions(linked: Linked) -> None:
    """Out of order, late ones and those to nobody left out."""
    first = asyncio.create_task(linked.end.ask("a", timeout_s=PATIENCE_S, fact=1))
    second = asyncio.create_task(linked.end.ask("b", timeout_s=PATIENCE_S))
    one, two = await linked.next(), await linked.next()
    assert (one["k"], one["what"], one["fact"], two["what"]) == ("ask", "a", 1, "b")
    for message in ({"k": "answer", "id": 999}, {"k": "answer", "id": "x"}, {"k": "other", "id": one["id"]}, {}):
        linked.say(message)
    linked.say({"k": "answer", "id": two["id"], "x": 2})
    linked.say({"k": "answer", "id": one["id"], "x": 1})
    assert ((await first)["x"], (await second)["x"]) == (1, 2)


async def test_a_parent_that_does_not_answer(linked: Linked) -> None:
    """The wait is bounded, a refusal is an error, and an answer that comes afterwards is nothing."""
    with pytest.raises(TimeoutError):
        await linked.end.ask("a", timeout_s=0.01)
    linked.say({"k": "answer", "id": (await linked.next())["id"]})
    asked = asyncio.create_task(linked.end.ask("b", timeout_s=PATIENCE_S))
    linked.say({"k": "answer", "id": (await linked.next())["id"], "error": "found nonsense"})
    with pytest.raises(ChannelLost, match="found nonsense"):
        await asked
    assert not linked.hearing.gone.is_set()


async def test_the_parent_vanishes_under_a_question(linked: Linked) -> None:
    """Whoever waits is told at once, and so is the worker; later questions fail without a wait."""
    asked = asyncio.create_task(linked.end.ask("a", timeout_s=PATIENCE_S))
    await linked.next()
    linked.parent.close()
    with pytest.raises(ChannelLost):
        await asked
    await asyncio.wait_for(linked.hearing.gone.wait(), PATIENCE_S)
    with pytest.raises(ChannelLost):
        await linked.end.ask("b", timeout_s=PATIENCE_S)
    assert not linked.end.connected


async def test_a_parent_that_cannot_be_understood_is_no_parent(linked: Linked) -> None:
    """After a broken frame nothing that follows means anything."""
    linked.parent.send(b"\xff\xff\xff\xff")
    await asyncio.wait_for(linked.hearing.gone.wait(), PATIENCE_S)


async def test_a_parent_that_does_not_read(linked: Linked, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's memory is bounded: beyond that, questions fail."""
    monkeypatch.setattr(channel, "MOST_UNASKED_BYTES", 1024 * 1024)
    with pytest.raises(ChannelLost, match="does not read"):
        for _ in range(1000):
            linked.end.send({"padding": "x" * 10_000})


async def test_the_parent_asks(linked: Linked) -> None:
    """A question with a number and a word reaches the worker, with what goes with it; a senseless one does not."""
    for message in ({"k": "tell", "id": 1, "what": "metrics"}, {"k": "tell", "id": 2, "what": 3}, {"k": "tell", "what": "x"}):
        linked.say(message)
    linked.say({"k": "tell", "id": 4, "what": "sessions", "args": {"limit": 1}})
    await until(lambda: len(linked.hearing.told) == 2)
    assert linked.hearing.told == [("metrics", 1, {}), ("sessions", 4, {"limit": 1})]


async def test_the_last_words_are_sent_before_the_end(linked: Linked) -> None:
    """Closing waits for what was written, and is no loss of the parent."""
    linked.end.send({"padding": "x" * 5_000_000})
    reading = asyncio.create_task(linked.next())
    await linked.end.close(timeout_s=PATIENCE_S)
    assert len((await reading)["padding"]) == 5_000_000
    assert not linked.hearing.gone.is_set()
