"""Listening sockets pass from a running router to the one that takes its place, over a Unix socket (``handover``).

    new                                            old
    connects, says hello ──────────────────────>   checks who it is
                        <──────────────────────    the sockets by SCM_RIGHTS, and a line that says what they are
    starts, accepts connections, claims the path
    says that it accepts ──────────────────────>   accepts no more, and drains

Both hold the same sockets meanwhile, so a connection waits in a queue that one of them serves at any time: none is refused, and
none is reset. A new router that fails before it says so is one connection that ended: the old one goes on as if nothing had been.

Lines of JSON. Only the same user and root are talked to, by the credentials that the kernel tells. Nothing here waits on the old
side; its owner says when a socket can be read (``Watch``), so it works in an event loop and without one.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from router.events import Notice, Observers

VERSION: Final = 1
#: How long the old router may take to answer, in seconds.
ANSWER_TIMEOUT_S: Final = 5.0
#: How long a new one keeps asking one that ends at that very moment.
_PATIENCE_S: Final = 10.0
_RETRY_S: Final = 0.1
# Descriptors in one message; the kernel takes 253.
_AT_ONCE: Final = 64
_MOST_SOCKETS: Final = 16_384
_LONGEST_LINE: Final = 1 << 20
# Who has connected and not said what for.
_MOST_PEERS: Final = 8
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid: ``struct ucred``
# Where it goes by sockets of the same name the system has no such flag, and no exec here that could leak them.
_CLOSE_ON_EXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)

Role = Literal["clients", "operators"]
ROLES: Final[tuple[Role, ...]] = ("clients", "operators")
#: Call back whenever a socket can be read; ``None``: not any more.
Watch = Callable[[socket.socket, Callable[[], None] | None], None]


class HandoverFailed(Exception):
    """The sockets cannot be had; the text says why, for an operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A listening socket and whom it is for."""

    role: Role
    sock: socket.socket


# --- the new router ------------------------------------------------------------------------------


class Predecessor:
    """The router whose sockets were taken; it serves until ``accepting``.

    Args:
        sock: the connection to it.
        pid: its process.
        generation: of its configuration.
    """

    def __init__(self, sock: socket.socket, *, pid: int, generation: int) -> None:
        self.pid = pid
        self.generation = generation
        self._sock = sock

    def accepting(self) -> None:
        """Have it accept no more. One that has died meanwhile does not either."""
        with contextlib.suppress(OSError):
            self._sock.sendall(_line({"accepting": True}))
        self.close()

    def close(self) -> None:
        """Leave it as it is; or, in a forked child, let go of what is the parent's."""
        self._sock.close()


def take_over(path: str) -> tuple[list[Given], Predecessor] | None:
    """Get the listening sockets of the router that runs, if one does. Blocks, for seconds at most.

    Args:
        path: of its Unix socket.

    Returns:
        The sockets, checked to be listening TCP sockets; ``None``: no router is there.

    Raises:
        HandoverFailed: there is one, and it gives none.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return _ask(path)
        except _Ended:
            # It ends now, or another one has just taken its place.
            if time.monotonic() >= deadline:
                raise HandoverFailed(f"handover: the router at {path} closes the connection without an answer") from None
            time.sleep(_RETRY_S)


class _Ended(Exception):
    """The other one closed the connection without a word."""


def _ask(path: str) -> tuple[list[Given], Predecessor] | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    descriptors: list[int] = []
    try:
        sock.settimeout(ANSWER_TIMEOUT_S)
        try:
            sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        uid = _peer(sock)[1]
        if not _trusted(uid):
            raise HandoverFailed(f"handover: {path} belongs to user {uid}, expected user {os.geteuid()} or root")
        sock.sendall(_line({"hello": VERSION}))
        answer = _read_answer(sock, descriptors)
        if "refused" in answer:
            raise HandoverFailed(f"handover: the router at {path} refuses: {str(answer['refused'])[:200]}")
        predecessor = Predecessor(sock, pid=_number(answer, "pid"), generation=_number(answer, "generation"))
        return _given(answer, descriptors), predecessor
    except BaseException as error:
        sock.close()
        for descriptor in descriptors:
            os.close(descriptor)
        if isinstance(error, TimeoutError):
            reason = f"no answer within {ANSWER_TIMEOUT_S:g} s"
            raise HandoverFailed(f"handover: the router at {path} does not answer: {reason}") from None
        if isinstance(error, ConnectionError | BlockingIOError):  # the latter: so many ask that there is a queue
            raise _Ended from None
        if isinstance(error, OSError):
            raise HandoverFailed(f"handover: {path}: {error.strerror or error}") from None
        raise


def _read_answer(sock: socket.socket, descriptors: list[int]) -> Mapping[str, Any]:
    """Read a line and the descriptors that come with it, which are added to ``descriptors`` as they come."""
    line = bytearray()
    room = socket.CMSG_SPACE(_AT_ONCE * array.array("i").itemsize)
    while not line.endswith(b"\n"):
        data, ancillary, flags, _ = sock.recvmsg(64 * 1024, room, _CLOSE_ON_EXEC)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
                descriptors += numbers
        if flags & socket.MSG_CTRUNC:
            raise HandoverFailed("handover: not all of the sockets arrived; are there descriptors left for this process?")
        if not data:
            raise _Ended
        line += data
        if len(line) > _LONGEST_LINE:
            raise HandoverFailed(f"handover: found an answer of more than {_LONGEST_LINE} bytes")
    return _object(bytes(line).lstrip(b"."))


def _given(answer: Mapping[str, Any], descriptors: list[int]) -> list[Given]:
    """Match descriptors with what the answer says of them. Those that became sockets are taken out of ``descriptors``."""
    if answer.get("version") != VERSION:
        raise HandoverFailed(f"handover: found version {str(answer.get('version'))[:20]}, expected {VERSION}")
    roles = answer.get("roles")
    if not isinstance(roles, list) or len(roles) != len(descriptors) or any(role not in ROLES for role in roles):
        raise HandoverFailed(f"handover: found {len(descriptors)} sockets, and not as many words that say whom they are for")
    given: list[Given] = []
    try:
        for role in roles:
            sock = socket.socket(fileno=descriptors[0])
            given.append(Given(role=role, sock=sock))
            del descriptors[0]
            require_listening(sock, "handover")
    except BaseException:
        for one in given:
            one.sock.close()
        raise
    return given


def require_listening(sock: socket.socket, where: str) -> None:
    """Do nothing when a socket listens for TCP connections; set it to not blocking.

    Raises:
        HandoverFailed: it does not; named by ``where``.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        found = f"{sock.family.name}, {sock.type.name}"
        raise HandoverFailed(f"{where}: found a socket of {found}, expected one that listens for TCP")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise HandoverFailed(f"{where}: found a TCP socket that does not listen")
    sock.setblocking(False)


# --- the old router ------------------------------------------------------------------------------


class _Peer:
    """Somebody who has connected."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.sock = sock
        self.pid = pid
        self.line = bytearray()


class Point:
    """The Unix socket where a successor asks.

    Args:
        path: of the socket.
        given: returns the listening sockets that are open now.
        generation: returns the number of the configuration in force.
        watch: of the owner.
        tell: observers.
    """

    def __init__(
        self,
        path: str,
        *,
        given: Callable[[], Sequence[Given]],
        generation: Callable[[], int],
        watch: Watch,
        tell: Observers,
    ) -> None:
        self.path = path
        # Who was given the sockets, until it says that it accepts connections.
        self._successor: _Peer | None = None
        self._given = given
        self._generation = generation
        self._watch = watch
        self._tell = tell
        self._taken: Callable[[int], None]  # set by ``open``
        self._sock: socket.socket | None = None  # only set from ``claim`` on, until it is closed
        self._identity: tuple[int, int] | None = None  # device and inode of the socket's file, to know it again
        self._in_place = False
        self._peers: list[_Peer] = []

    def claim(self) -> None:
        """Listen beside the path, which is another router's as long as that one serves.

        Raises:
            HandoverFailed: it cannot be.
        """
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(self.path).st_mode):
                raise HandoverFailed(f"handover: {self.path} is there and is no socket")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                # Of a process of the same number that crashed long ago.
                os.unlink(self._beside)
            sock.bind(self._beside)
            # Before it listens nobody can connect.
            os.chmod(self._beside, 0o600)
            found = os.lstat(self._beside)
            sock.listen(_MOST_PEERS)
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            raise HandoverFailed(f"handover: cannot listen on {self.path}: {error.strerror or error}") from None
        self._sock, self._identity = sock, (found.st_dev, found.st_ino)

    def open(self, taken: Callable[[int], None]) -> None:
        """Take the path, and answer there from now on.

        Args:
            taken: called once, with the process id of a successor that accepts connections. The point is closed then.

        Raises:
            HandoverFailed: it cannot be.
        """
        assert self._sock is not None
        self._taken = taken
        try:
            os.rename(self._beside, self.path)
        except OSError as error:
            raise HandoverFailed(f"handover: cannot take {self.path}: {error.strerror or error}") from None
        self._in_place = True
        self._watch(self._sock, self._accept)

    def close(self) -> None:
        """Answer nobody any more, and leave no file behind, unless it is a successor's."""
        sock, self._sock = self._sock, None
        for peer in self._peers[:]:
            self._part(peer)
        if sock is None:
            return
        if self._in_place:
            self._watch(sock, None)
        sock.close()
        path = self.path if self._in_place else self._beside
        with contextlib.suppress(OSError):
            found = os.lstat(path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(path)

    def forget(self) -> None:
        """Let go of the descriptors in a forked child: the parent's successor must not wait for it."""
        for sock in (self._sock, *(peer.sock for peer in self._peers)):
            if sock is not None:
                sock.close()

    @property
    def _beside(self) -> str:
        return f"{self.path}.{os.getpid()}"

    # An owner that looks at several sockets at once may call for one that has been closed since.

    def _accept(self) -> None:
        if self._sock is None:
            return
        try:
            sock, _ = self._sock.accept()
        except OSError:  # it has left again, or there is no descriptor for it now
            return
        sock.setblocking(False)
        try:
            pid, uid = _peer(sock)
        except OSError:
            sock.close()
            return
        if not _trusted(uid):
            facts = {"pid": pid, "uid": uid, "reason": "another user"}
            self._tell(Notice(level="warning", event="handover refused", facts=facts))
            sock.close()
            return
        waiting = [peer for peer in self._peers if peer is not self._successor]
        if len(waiting) >= _MOST_PEERS:
            self._part(waiting[0])
        peer = _Peer(sock, pid)
        self._peers.append(peer)
        self._watch(sock, lambda: self._hear(peer))

    def _hear(self, peer: _Peer) -> None:
        if peer not in self._peers:
            return
        try:
            data = peer.sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        peer.line += data
        if not data or len(peer.line) > 4096:
            self._lose(peer)
            return
        while b"\n" in peer.line and peer in self._peers:
            line, _, peer.line = peer.line.partition(b"\n")
            try:
                self._follow(peer, _object(bytes(line)))
            except (HandoverFailed, OSError):
                self._lose(peer)

    def _follow(self, peer: _Peer, message: Mapping[str, Any]) -> None:
        if "hello" in message:
            self._answer(peer, message["hello"])
        elif message.get("accepting") is True and peer is self._successor:
            self._hand_over(peer.pid)
        else:
            raise HandoverFailed("found a line that means nothing here")

    def _answer(self, peer: _Peer, version: Any) -> None:
        if version != VERSION:
            self._refuse(peer, f"found version {str(version)[:20]} of the handover, expected {VERSION}")
            return
        if self._successor is not None:
            self._refuse(peer, f"process {self._successor.pid} is taking over already")
            return
        given = self._given()
        if not given:
            # All is over but the end of the process; the next try will find nobody here.
            self._part(peer)
            return
        numbers = [one.sock.fileno() for one in given]
        for first in range(0, len(numbers), _AT_ONCE):
            # A dot for each: descriptors do not travel without a byte.
            socket.send_fds(peer.sock, [b"."], numbers[first : first + _AT_ONCE])
        answer = {"version": VERSION, "pid": os.getpid(), "generation": self._generation()}
        peer.sock.send(_line({**answer, "roles": [one.role for one in given], "addresses": [_address(one) for one in given]}))
        self._successor = peer
        self._tell(Notice(level="info", event="successor starts", facts={"pid": peer.pid, "sockets": len(given)}))

    def _refuse(self, peer: _Peer, reason: str) -> None:
        self._tell(Notice(level="warning", event="handover refused", facts={"pid": peer.pid, "reason": reason}))
        peer.sock.send(_line({"refused": reason}))
        self._part(peer)

    def _hand_over(self, pid: int) -> None:
        # The path is the successor's, so the file at it stays.
        self.close()
        self._tell(Notice(level="info", event="handed over", facts={"successor": pid}))
        self._taken(pid)

    def _lose(self, peer: _Peer) -> None:
        self._part(peer)
        if peer is not self._successor:
            return
        self._successor = None
        self._tell(Notice(level="error", event="successor failed", facts={"pid": peer.pid, "meanwhile": "this router goes on"}))
        self._reclaim()

    def _reclaim(self) -> None:
        """Take the path back that one has taken which then died."""
        with contextlib.suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == self._identity:
                return
        sock, self._sock = self._sock, None
        if sock is not None:
            self._watch(sock, None)
            sock.close()
        self._in_place = False
        try:
            self.claim()
            self.open(self._taken)
        except HandoverFailed as error:
            self._tell(Notice(level="error", event="handover not possible", facts={"error": str(error)}))

    def _part(self, peer: _Peer) -> None:
        self._peers.remove(peer)
        self._watch(peer.sock, None)
        peer.sock.close()


# --- both ----------------------------------------------------------------------------------------


def _peer(sock: socket.socket) -> tuple[int, int]:
    """Process and user at the other end of a Unix socket, as the kernel says."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        # Elsewhere the file's mode keeps others away.
        return 0, os.geteuid()
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
    return pid, uid


def _trusted(uid: int) -> bool:
    return uid in (0, os.geteuid())


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise HandoverFailed(f"handover: found {len(line)} bytes, expected an object in JSON")
    return message


def _number(message: Mapping[str, Any], name: str) -> int:
    value = message.get(name)
    if type(value) is not int:
        raise HandoverFailed(f"handover: {name}: found {type(value).__name__}, expected a number")
    return value


def _address(given: Given) -> list[Any]:
    return list(given.sock.getsockname()[:2])
