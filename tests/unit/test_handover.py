"""The handover's protocol between two ends in one process: whom it talks to, what it makes of nonsense, what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from router import handover
from router.events import Event, Notice, Observers
from router.handover import Given, HandoverFailed, Point, take_over
from router.process import watch
from router.systemd import activated, notify
from tests.helpers.running import until


class Owner:
    """A router that serves, as far as the handover sees of it."""

    def __init__(self, folder: Path, listeners: list[socket.socket]) -> None:
        self.listeners = listeners
        self.notices: list[Notice] = []
        self.taken: list[int] = []
        self.asked = 0
        self.path = str(folder / "handover.sock")
        self.point = self.make()

    def make(self) -> Point:
        """Another one at the same path."""
        return Point(self.path, given=self.given, generation=lambda: 7, watch=watch, tell=Observers([self.tell]))

    def given(self) -> list[Given]:
        """Those that are open."""
        self.asked += 1
        return [Given(role="clients", sock=sock) for sock in self.listeners if sock.fileno() >= 0]

    def tell(self, event: Event) -> None:
        """Note it."""
        assert isinstance(event, Notice)
        self.notices.append(event)

    def told(self, event: str) -> list[Notice]:
        """The notices of an event."""
        return [notice for notice in self.notices if notice.event == event]

    def told_more(self, event: str, than: int) -> bool:
        """Whether there are more notices of an event than so many."""
        return len(self.told(event)) > than

    def files(self) -> list[str]:
        """What is in its folder."""
        return os.listdir(os.path.dirname(self.path))

    def serve(self) -> None:
        """Answer at the path."""
        self.point.claim()
        self.point.open(self.taken.append)


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    """More listening sockets than go into one message."""
    made: list[socket.socket] = []
    for _ in range(130):
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        made.append(sock)
    yield made
    for sock in made:
        sock.close()


@pytest.fixture
async def owner(tmp_path: Path, listeners: list[socket.socket]) -> AsyncIterator[Owner]:
    """One that answers."""
    owner = Owner(tmp_path, listeners)
    owner.serve()
    yield owner
    owner.point.close()


def close(given: list[Given]) -> None:
    """Let go of what was received."""
    for one in given:
        one.sock.close()


async def test_all_sockets_arrive_and_are_the_same(owner: Owner) -> None:
    """130 of them, not inherited by programs that are started, not blocking, and listening at the same addresses."""
    found = await asyncio.to_thread(take_over, owner.path)
    assert found is not None
    given, predecessor = found
    try:
        assert (predecessor.pid, predecessor.generation) == (os.getpid(), 7)
        assert [one.sock.getsockname() for one in given] == [sock.getsockname() for sock in owner.listeners]
        assert {one.role for one in given} == {"clients"}
        assert not any(os.get_inheritable(one.sock.fileno()) or one.sock.getblocking() for one in given)
        assert owner.taken == []
        predecessor.accepting()
        await until(lambda: bool(owner.taken))
        assert owner.taken == [os.getpid()]
        # A file that nobody has taken would lead nowhere.
        assert not owner.files()
    finally:
        close(given)
        predecessor.close()


async def test_a_successor_that_goes_changes_nothing(owner: Owner) -> None:
    """The old router goes on, and the next one is served; also one that had taken the path already."""
    for taken_path in (False, True):
        found = await asyncio.to_thread(take_over, owner.path)
        assert found is not None
        given, predecessor = found
        close(given)
        if taken_path:
            other = owner.make()
            other.claim()
            other.open(owner.taken.append)
            other.forget()
        more = partial(owner.told_more, "successor failed", len(owner.told("successor failed")))
        predecessor.close()
        await until(more)
    found = await asyncio.to_thread(take_over, owner.path)
    assert found is not None
    close(found[0])
    found[1].accepting()
    await until(lambda: bool(owner.taken))
    assert len(owner.taken) == 1


async def test_two_successors_at_once(owner: Owner) -> None:
    """The second one is refused by name of the first, and may come again when that one has failed."""
    found = await asyncio.to_thread(take_over, owner.path)
    assert found is not None
    with pytest.raises(HandoverFailed, match=f"process {os.getpid()} is taking over already"):
        await asyncio.to_thread(take_over, owner.path)
    close(found[0])
    found[1].close()
    await until(lambda: bool(owner.told("successor failed")))
    again = await asyncio.to_thread(take_over, owner.path)
    assert again is not None
    close(again[0])
    again[1].close()


def test_what_was_readable_before_the_point_closed_is_nothing(tmp_path: Path, listeners: list[socket.socket]) -> None:
    """An owner without an event loop has seen several sockets at once; the first of them may be the end of all."""
    owner = Owner(tmp_path, listeners[:1])
    watched: dict[socket.socket, Callable[[], None]] = {}

    def note(sock: socket.socket, callback: Callable[[], None] | None) -> None:
        if callback is None:
            del watched[sock]
        else:
            watched[sock] = callback

    owner.point = Point(owner.path, given=owner.given, generation=lambda: 1, watch=note, tell=Observers([owner.tell]))
    owner.serve()
    (accept,) = watched.values()
    successor, rival = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    with successor, rival:
        for sock in (successor, rival):
            sock.connect(owner.path)
            accept()
        _, heard, heard_rival = watched.values()
        successor.sendall(b'{"hello":1}\n')
        heard()
        successor.sendall(b'{"accepting":true}\n')
        for callback in (heard, heard_rival, accept):
            callback()
    assert owner.taken == [os.getpid()] and not watched


async def test_the_file_is_the_owners_alone_and_goes_with_it(owner: Owner) -> None:
    """Mode 0600; nothing is left in the folder; a file of a crashed router is replaced."""
    assert stat.S_IMODE(os.stat(owner.path).st_mode) == 0o600
    owner.point.forget()
    assert take_over(owner.path) is None
    owner.point = owner.make()
    owner.serve()
    assert owner.files() == ["handover.sock"]
    owner.point.close()
    assert owner.files() == []


async def test_a_newer_owners_file_is_not_removed(owner: Owner) -> None:
    """An old router that ends takes away its own file only."""
    other = owner.make()
    other.claim()
    other.open(owner.taken.append)
    owner.point.close()
    assert owner.files() == ["handover.sock"]
    other.close()
    assert owner.files() == []


def test_what_is_no_socket_is_never_replaced(tmp_path: Path, listeners: list[socket.socket]) -> None:
    """A path that names somebody's file is a mistake in the configuration; so is a folder that is not there."""
    owner = Owner(tmp_path, listeners)
    Path(owner.path).write_text("precious")
    with pytest.raises(HandoverFailed, match="is there and is no socket"):
        owner.point.claim()
    assert Path(owner.path).read_text() == "precious"
    with pytest.raises(HandoverFailed, match="cannot listen on"):
        Owner(tmp_path / "nowhere", listeners).point.claim()


async def test_another_user_gets_nothing(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says who connects; neither end talks to a stranger."""
    monkeypatch.setattr(handover, "_peer", lambda sock: (4242, os.geteuid() + 1))
    with pytest.raises(HandoverFailed, match="belongs to user"):
        await asyncio.to_thread(take_over, owner.path)
    await until(lambda: bool(owner.told("handover refused")))
    assert owner.told("handover refused")[0].facts["pid"] == 4242
    assert owner.told("successor starts") == []


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b'{"accepting":true}\n', b"[" * 3000 + b"\n", b"x" * 5000, b'{"hello":2}\n'],
)
async def test_nonsense_is_cut_off(owner: Owner, said: bytes) -> None:
    """Whoever says what means nothing loses the connection, and gets no socket."""
    reader, writer = await asyncio.open_unix_connection(owner.path)
    async with asyncio.timeout(10):
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            answer = await reader.read()
            assert (b"refused" in answer) == (b"hello" in said)
    writer.close()
    assert owner.told("successor starts") == []
    found = await asyncio.to_thread(take_over, owner.path)
    assert found is not None
    close(found[0])
    found[1].close()


async def test_those_who_say_nothing_keep_nobody_away(owner: Owner) -> None:
    """Of many silent connections the oldest go."""
    silent = [await asyncio.open_unix_connection(owner.path) for _ in range(20)]
    found = await asyncio.to_thread(take_over, owner.path)
    assert found is not None
    close(found[0])
    found[1].close()
    for _, writer in silent:
        writer.close()


async def test_one_that_ends_now_gives_nothing_and_is_asked_again(
    owner: Owner, listeners: list[socket.socket]
) -> None:
    """Its sockets are closed already: the new router waits for its end, and opens its own."""
    for sock in listeners:
        sock.close()
    asking = asyncio.create_task(asyncio.to_thread(take_over, owner.path))
    await until(lambda: owner.asked > 0)
    owner.point.close()
    assert await asking is None


ANSWERS: list[tuple[dict[str, Any] | bytes, str]] = [
    ({"version": 2, "pid": 1, "generation": 1, "roles": []}, "found version 2, expected 1"),
    ({"version": 1, "pid": 1, "generation": 1, "roles": ["clients"]}, "found 0 sockets"),
    ({"version": 1, "pid": "x", "generation": 1, "roles": []}, "pid: found str, expected a number"),
    ({"refused": "no\nreason"}, "refuses"),
    (b"nonsense\n", "expected an object in JSON"),
]


@pytest.mark.parametrize(("answer", "said"), ANSWERS)
async def test_answers_that_mean_nothing(tmp_path: Path, answer: dict[str, Any] | bytes, said: str) -> None:
    """A new router says in a sentence what is wrong with the old one's."""
    path = str(tmp_path / "s")

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(talk, path)
    with pytest.raises(HandoverFailed, match=said):
        await asyncio.to_thread(take_over, path)
    server.close()


async def test_one_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No start waits for ever for a router that was stopped."""
    monkeypatch.setattr(handover, "ANSWER_TIMEOUT_S", 0.1)
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(path)
        silent.listen()
        with pytest.raises(HandoverFailed, match=r"does not answer: no answer within 0\.1 s"):
            await asyncio.to_thread(take_over, path)


def test_only_listening_tcp_sockets_are_taken() -> None:
    """Of what a process is given, anything else is a mistake that is told by its kind."""
    with socket.socket() as idle, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
        with pytest.raises(HandoverFailed, match=r"^x: found a TCP socket that does not listen$"):
            handover.require_listening(idle, "x")
        with pytest.raises(HandoverFailed, match="AF_INET, SOCK_DGRAM, expected one that listens for TCP"):
            handover.require_listening(packets, "x")


# --- systemd -------------------------------------------------------------------------------------


def test_sockets_meant_for_another_process_are_left_alone() -> None:
    """A shell in between has a number of its own; the variables go, for children would take them for theirs."""
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "clients", "HOME": "/"}
    assert activated(environ, operators=False) == []
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize("count", ["x", "-1", "²", "99999"])
def test_a_senseless_number_of_sockets(count: str) -> None:
    """It is named, and nothing is taken."""
    with pytest.raises(HandoverFailed, match="LISTEN_FDS: found"):
        activated({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count}, operators=False)


def test_the_supervisor_is_told(tmp_path: Path) -> None:
    """One datagram, at a path or an abstract name; nobody there, or a name that is none, is nobody's concern."""
    for name in (str(tmp_path / "notify"), f"@realtime-router-test-{os.getpid()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
            supervisor.bind(f"\0{name[1:]}" if name.startswith("@") else name)
            supervisor.settimeout(10)
            notify("MAINPID=1", "READY=1", environ={"NOTIFY_SOCKET": name})
            assert supervisor.recv(100) == b"MAINPID=1\nREADY=1"
    for nowhere in ({}, {"NOTIFY_SOCKET": "vsock:1:2"}, {"NOTIFY_SOCKET": str(tmp_path / "nobody")}):
        notify("READY=1", environ=nowhere)
