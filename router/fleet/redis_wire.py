"""Connections to a Redis or Valkey server: by address, by its sentinels, by a cluster that it is a node of.

Built on the connections of redis-py's asyncio client and not on its ``Redis``, ``Sentinel`` and ``RedisCluster``: these dial
again where this must fail, name themselves to the server in two more commands (which an ACL may forbid), ask for maps of the
cluster, and bound the parts of a call rather than the whole. What is used of it: the dial, TLS, RESP2 in and out.

Nothing here looks at the clock but where one of several servers may hang: whoever calls bounds the time. A connection is of
use only as long as every command that was sent has had its answer. So whoever fails or is cancelled cuts it, and no other call
can read an answer that was meant for him.

Imported on need: redis-py takes 100 ms and 10 MiB.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import ipaddress
import os
import re
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from redis._parsers import _AsyncRESP2Parser
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import InvalidResponse, NoScriptError, ResponseError

from router.config.settings import FleetSettings, Secret
from router.fleet.exchange import ExchangeError
from router.fleet.scripts import Script
from router.tls import resuming_context

#: Longest answer of a server that is read: a sum of 20,000 names. Bytes.
MOST_BYTES: Final = 2**24
#: Most items of an answer.
MOST_ITEMS: Final = 2**16
# One sentinel of several, or one node, may hang: then the next one is asked. Seconds.
_ONE_OF_SEVERAL_S: Final = 0.3
_LONGEST_MESSAGE: Final = 200

Address = tuple[str, int]


def told(error: BaseException) -> str:
    """Return what an exception says, fit for a line of a log: it may quote what a server sent."""
    text = "".join(char if char.isprintable() else "?" for char in str(error)[:_LONGEST_MESSAGE])
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _Parser(_AsyncRESP2Parser):
    """Reads the answers of servers that follow no protocol in bounded memory; only flat arrays are expected of any."""

    async def read_response(self, disable_decoding: bool = False) -> Any:
        """As the base class."""
        self._arrays = 0
        return await super().read_response(disable_decoding=disable_decoding)

    async def _readline(self) -> bytes:
        line: bytes = await super()._readline()
        kind, size = line[:1], line[1:]
        if kind == b"*":
            self._arrays += 1
            if self._arrays > 1 or not _fits(size, MOST_ITEMS):
                raise InvalidResponse(f"found an array {line[:32]!r}, expected one of at most {MOST_ITEMS} items")
        elif kind == b"$" and not _fits(size, MOST_BYTES):
            raise InvalidResponse(f"found a string {line[:32]!r}, expected at most {MOST_BYTES} bytes")
        return line


def _fits(size: bytes, most: int) -> bool:
    # Ten digits: ``int`` takes a time that grows with the square of them.
    return re.fullmatch(rb"-1|[0-9]{1,10}", size) is not None and int(size) <= most


class Link:
    """A connection on which one command at a time is under way.

    Args:
        connection: of redis-py, connected.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        # redis-py drops it when anything fails, and only closes it: what was written to a server that does not read would
        # keep it open for ever.
        self._reader: asyncio.StreamReader = connection._reader
        self._writer: asyncio.StreamWriter = connection._writer

    @property
    def usable(self) -> bool:
        """Whether the server has not ended it, as far as is known."""
        return not self._writer.transport.is_closing() and not self._reader.at_eof()

    async def call(self, *command: bytes | str | int) -> Any:
        """Send a command and return its answer, with strings as bytes.

        Raises:
            redis.exceptions.ResponseError: the server says no; the connection is fine.
            Exception: it is not, or what came is no answer: cut it.
        """
        (answer,) = await self.pipeline(command)
        if isinstance(answer, ResponseError):
            raise answer from None
        return answer

    async def pipeline(self, *commands: Sequence[bytes | str | int]) -> list[Any]:
        """Send commands in one go and return their answers, or the errors in the place of such."""
        await self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)
        answers: list[Any] = []
        for _ in commands:
            try:
                answers.append(await self._connection.read_response(disable_decoding=True))
            except ResponseError as error:
                answers.append(error)
        return answers

    async def evaluate(self, script: Script, keys: Sequence[str], arguments: Sequence[bytes | str | int]) -> Any:
        """Run a script; a server that does not know it yet is given it."""
        try:
            return await self.call("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await self.call("EVAL", script.source, len(keys), *keys, *arguments)

    async def greet(self, username: str | None, password: Secret | None, db: int) -> None:
        """Say who asks, and choose the database; one round trip at most.

        Raises:
            ExchangeError: the server refuses. Its own words may repeat the password, and are left out.
        """
        commands: list[Sequence[bytes | str | int]] = []
        if username is not None or password is not None:
            secret = "" if password is None else password.reveal()
            commands.append(("AUTH", secret) if username is None else ("AUTH", username, secret))
        if db:
            commands.append(("SELECT", db))
        if not commands:
            return
        what = " and ".join(str(name) for name, *_ in commands)
        try:
            answers = await self.pipeline(*commands)
        except Exception as exc:
            raise ExchangeError(f"{what} not answered: {type(exc).__name__}") from None
        if wrong := [type(answer).__name__ for answer in answers if answer != b"OK"]:
            raise ExchangeError(f"{what} refused: {', '.join(wrong)}; user, password or database do not fit")

    def cut(self) -> None:
        """End it at once, whatever is under way; the server is not waited for."""
        self._writer.transport.abort()
        # Otherwise redis-py warns that it was left open.
        self._connection._close()

    async def gone(self) -> None:
        """Wait until the event loop has let go of it, after ``cut``."""
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class Dialler:
    """Finds the server that takes writes, and connects to it.

    Args:
        settings: where it is.
        probe: a key of the fleet's; the node of a cluster that holds it holds all of them.
    """

    def __init__(self, settings: FleetSettings, *, probe: str) -> None:
        self._settings = settings
        self._probe = probe
        # Which of the sentinels, or of the cluster's nodes, is asked first: the one that answered last.
        self._first = 0
        # The cluster's node that holds the keys, once known.
        self._owner: Address | None = None
        self._tls: tuple[tuple[tuple[int, ...] | None, ...], ssl.SSLContext] | None = None
        # Name → the lookup under way. A thread does it, which nothing can end: one name never takes more than one of them.
        self._lookups: dict[str, asyncio.Future[Any]] = {}

    async def dial(self) -> Link:
        """Return a new connection. It takes no notice of a replica in the place of the master: that answers writes with READONLY.

        Raises:
            Exception: there is none.
        """
        if self._settings.kind == "sentinel":
            return await self._open(await self._by_turns(self._ask_sentinel, "sentinel"))
        if self._settings.kind == "cluster":
            found: Link = await self._by_turns(self._follow, "node")
            return found
        return await self._open(self._settings.path if self._settings.path is not None else self._settings.nodes[0])

    async def prove(self, link: Link) -> None:
        """Ask for something that costs nothing: a server that has no room for a client says so in the place of an answer."""
        await link.call("ZCARD", self._probe)

    def forget(self) -> None:
        """What was found out may no longer hold."""
        self._owner = None

    async def _by_turns(self, ask: Callable[[Address], Awaitable[Any]], what: str) -> Any:
        """Ask each of several servers until one answers; that one is the first next time."""
        nodes = self._settings.nodes
        reasons = []
        first = self._first
        for turn in range(len(nodes)):
            index = (first + turn) % len(nodes)
            # Where the whole is cut short by whoever waits, the next call goes on with the next server.
            self._first = (index + 1) % len(nodes)
            try:
                async with asyncio.timeout(_ONE_OF_SEVERAL_S if len(nodes) > 1 else None):
                    found = await ask(nodes[index])
            except Exception as error:
                reasons.append(f"{nodes[index][0]}:{nodes[index][1]}: {told(error)}")
                continue
            self._first = index
            return found
        raise ExchangeError(f"no {what} is of help: {'; '.join(reasons)[:1000]}")

    # --- sentinels ----------------------------------------------------------------------------------

    async def _ask_sentinel(self, sentinel: Address) -> Address:
        link = await self._open(sentinel, of_sentinel=True)
        try:
            answer = await link.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._settings.service)
        finally:
            link.cut()
        if answer is None:
            raise ExchangeError(f"knows no master {self._settings.service!r}")
        if not isinstance(answer, list) or len(answer) != 2 or not all(isinstance(part, bytes) for part in answer):
            raise ExchangeError("found an answer of another form, expected host and port")
        return _address(answer[0].decode("utf-8", "replace"), answer[1].decode("utf-8", "replace"))

    # --- clusters -----------------------------------------------------------------------------------

    async def _follow(self, node: Address) -> Link:
        """Connect to the node that holds the keys, by way of another unless it is known."""
        # What is known is tried once: were it wrong, the other nodes would lead there in vain.
        address, self._owner = self._owner or node, None
        # Twice moved: a failover that not all nodes know of yet.
        for _ in range(3):
            link = await self._open(address)
            try:
                moved = await self._moved(link, address)
            except BaseException:
                link.cut()
                raise
            if moved is None:
                self._owner = address
                return link
            link.cut()
            address = moved
        raise ExchangeError("found the keys moved again and again, expected them on one node")

    async def _moved(self, link: Link, address: Address) -> Address | None:
        try:
            await self.prove(link)
        except ResponseError as error:
            # ``MovedError`` in redis-py 8, with or without the first word; before that, an error like others.
            match = re.fullmatch(r"(?:MOVED )?[0-9]{1,5} (\S{0,255}):([0-9]{1,5})", str(error))
            if match is None:
                raise
            # A node may leave its host out: it is the one that was asked.
            return _address(match[1] or address[0], match[2])
        return None

    # --- one server ---------------------------------------------------------------------------------

    async def _open(self, place: Address | str, *, of_sentinel: bool = False) -> Link:
        connection = self._connection(place)
        if not isinstance(place, str):
            await self._resolvable(place[0])
        await connection.connect()
        link = Link(connection)
        try:
            if of_sentinel:
                await link.greet(self._settings.sentinel_username, self._settings.sentinel_password, 0)
            else:
                await link.greet(self._settings.username, self._settings.password, self._settings.db)
        except BaseException:
            link.cut()
            raise
        return link

    def _connection(self, place: Address | str) -> Any:
        options: dict[str, Any] = {
            "protocol": 2,
            "parser_class": _Parser,
            "retry": Retry(NoBackoff(), 0),
            # Bounded as a whole by the caller; with a limit of its own, redis-py makes a task of every write.
            "socket_timeout": None,
            "socket_connect_timeout": None,
            **_NAMELESS,
        }
        if isinstance(place, str):
            return UnixDomainSocketConnection(path=place, **options)
        if not self._settings.tls:
            return Connection(host=place[0], port=place[1], **options)
        connection = SSLConnection(host=place[0], port=place[1], **options)
        # Its own would trust the system's authorities beside ours, and be made anew, 20 ms long, for each connection.
        connection.ssl_context.context = self._context()
        return connection

    def _context(self) -> ssl.SSLContext:
        files = (self._settings.ca_file, self._settings.client_cert, self._settings.client_key)
        stamps = tuple(_stamp(path) for path in files)
        if self._tls is None or self._tls[0] != stamps:
            # Certificates are short-lived, and are replaced under the same name.
            self._tls = (stamps, _tls_context(self._settings))
        return self._tls[1]

    async def _resolvable(self, host: str) -> None:
        """Look a name up, so that the dial finds the answer at hand; lookups that hang do not gather."""
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(host)
            return
        lookup = self._lookups.get(host)
        if lookup is None:
            loop = asyncio.get_running_loop()
            lookup = loop.run_in_executor(None, socket.getaddrinfo, host, None, 0, socket.SOCK_STREAM)
            self._lookups[host] = lookup
            lookup.add_done_callback(lambda _: self._lookups.pop(host, None))
        await asyncio.shield(lookup)


# redis-py tells the server its name and version in two commands more; how it is kept from that depends on its version.
_NAMELESS: Final[dict[str, Any]] = (
    {"driver_info": None}
    if "driver_info" in inspect.signature(AbstractConnection.__init__).parameters
    else {"lib_name": None, "lib_version": None}
)


def _address(host: str, port: str) -> Address:
    # Hosts come from a server here: what is no name is not handed to the resolver.
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,253}", host) or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ExchangeError("found an address that is none, expected host and port")
    return host, int(port)


def _tls_context(settings: FleetSettings) -> ssl.SSLContext:
    """Return a context that checks certificate and host name.

    Raises:
        ExchangeError: a file cannot be used.
    """
    # Of this kind since the router's event loop has a TLS of its own for it, where a dial may be given up at any moment: uvloop's
    # then tells of fatal errors, which is a line in the log for each.
    context = resuming_context()
    try:
        if settings.ca_file is None:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        else:
            context.load_verify_locations(settings.ca_file)
    except (OSError, ValueError) as exc:
        raise ExchangeError(f"certificate authorities {settings.ca_file!r}: {told(exc)}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.client_cert is None:
        return context
    try:
        context.load_cert_chain(settings.client_cert, settings.client_key, password=_no_password)
    except (OSError, ValueError) as exc:
        raise ExchangeError(f"client certificate {settings.client_cert!r}: {told(exc)}") from exc
    return context


def _no_password() -> str:
    # Without a callback OpenSSL asks on the terminal, and the whole process waits for an answer.
    raise ValueError("the key is encrypted, expected one that is not")


def _stamp(path: str | None) -> tuple[int, ...] | None:
    if path is None:
        return None
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


class Links:
    """A few connections to one server: each call has one to itself, and none waits for another's answer.

    Used in turn, so that none lies still long enough to be forgotten by what is in between.

    Args:
        dialler: makes them.
        most: open at once.
        spare: kept open for whoever cannot wait for a dial.
    """

    def __init__(self, dialler: Dialler, *, most: int, spare: int) -> None:
        self._dialler = dialler
        self._spare = spare
        self._room = asyncio.Semaphore(most)
        self._busy = 0
        # The one that was used longest ago is the first.
        self._idle: deque[Link] = deque()
        self._open: set[Link] = set()
        # Counts ``renew``: a connection from before is not used again.
        self._age = 0
        self._closed = False

    def __len__(self) -> int:
        """Open connections."""
        return len(self._open)

    @property
    def connected(self) -> bool:
        """Whether one is open and free."""
        self._drop_ended()
        return bool(self._idle)

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[Link]:
        """Have a connection to oneself. When the block does not end well, the connection ends.

        Raises:
            ExchangeError: ``close`` was called.
            Exception: the dial failed.
        """
        async with self._room:
            self._busy += 1
            try:
                self._drop_ended()
                age = self._age
                link = self._idle.popleft() if self._idle else await self._dial()
                try:
                    yield link
                except BaseException:
                    self._cut(link)
                    raise
                if age == self._age and not self._closed:
                    self._idle.append(link)
                else:
                    self._cut(link)
            finally:
                self._busy -= 1

    async def connect(self) -> None:
        """Open one if none is free."""
        if not self.connected:
            async with self.borrow():
                pass

    async def fill(self) -> None:
        """Open as many as are to be spare."""
        while self._busy + len(self._idle) < self._spare:
            async with self._room:
                self._busy += 1
                try:
                    age = self._age
                    link = await self._dial()
                    try:
                        # Nobody uses it now, and whoever does has no time to find out that it is none.
                        await self._dialler.prove(link)
                    except BaseException:
                        self._cut(link)
                        raise
                    if age != self._age or self._closed:
                        self._cut(link)
                        return
                    self._idle.append(link)
                finally:
                    self._busy -= 1

    def renew(self) -> None:
        """None of the connections is used again, and the server is looked for anew: it may be another one by now."""
        self._age += 1
        self._dialler.forget()
        while self._idle:
            self._cut(self._idle.popleft())

    async def close(self) -> None:
        """End all of them, those in use included."""
        self._closed = True
        links = list(self._open)
        self._idle.clear()
        for link in links:
            self._cut(link)
        await asyncio.gather(*(link.gone() for link in links))
        # A turn for those that were cut just before.
        await asyncio.sleep(0)

    async def _dial(self) -> Link:
        if self._closed:
            raise ExchangeError("the exchange is closed")
        link = await self._dialler.dial()
        self._open.add(link)
        if self._closed:
            self._cut(link)
            raise ExchangeError("the exchange is closed")
        return link

    def _cut(self, link: Link) -> None:
        self._open.discard(link)
        link.cut()

    def _drop_ended(self) -> None:
        for link in [link for link in self._idle if not link.usable]:
            self._idle.remove(link)
            self._cut(link)
