"""Connections to a Redis or Valkey server, by the public asyncio clients of redis-py.

The library dials, speaks TLS and RESP, says who asks and which database, keeps connections alive, notices before a call that the
server has ended one and dials again, asks a sentinel for the master, and reads a cluster's redirections. Ours is the rest:

- A call has a client of one connection to itself, so calls do not wait for each other. Clients are used in turn, and some are
  kept connected for whoever has no time for a dial.
- Who fails or is cancelled lets go of his client, and ``renew`` of all the others: what fails may be the wrong server by now, and
  the address is looked for anew. A client that was let go of ends in the background; nobody waits for a server that hangs.
- Nothing is tried again. How long a call may take as a whole is up to the caller; the library bounds only parts of one.
- A cluster's node is found by following MOVED: all keys of a fleet are in one slot. ``RedisCluster`` reads the map of all slots
  and believes it: one line with slots 0 to 8,000,000 holds the event loop for 4 s and takes 1 GiB, whatever the time limit
  (redis-py 8.1). An honest map, with the table of all commands, costs 50 ms of CPU at every start.
- Sentinels are asked one by one. ``Sentinel`` gives up at the first that talks nonsense, needs the right to list all masters,
  and describes failures by the whole client, in some versions with its password.
- The size of answers (``_Parser``, on the one private part of redis-py in here). Nothing else limits them: a server on the same
  host that announces 512 MiB and sends them takes 1.5 GiB and 3 s of the event loop, in one call of 0.1 s (redis-py 8.1).
- The TLS context (``_TlsConnection``): the library's own trusts the system's authorities beside the given ones, asks for the
  password of an encrypted key on the terminal, and takes 20 ms of the event loop at every dial.

Imported on need: redis-py takes 100 ms and 10 MiB.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar

import redis
from redis._parsers import _AsyncRESP2Parser
from redis.asyncio import ConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import InvalidResponse, MovedError, NoScriptError

from router.config.settings import FleetSettings
from router.fleet.exchange import ExchangeError
from router.fleet.scripts import Script
from router.tasks import Tasks
from router.tls import resuming_context, stamp_of

#: Longest answer of a server that is read: a sum of 20,000 names. Bytes of its strings.
MOST_BYTES: Final = 2**24
#: Most items of an answer.
MOST_ITEMS: Final = 2**13
# One sentinel of several, or one node, may hang: then the next one is asked. Seconds.
_ONE_OF_SEVERAL_S: Final = 0.3
# Longest wait for the end of a connection, and for one part of a dial. Seconds.
_END_S: Final = 2.0
_SLOW_LOOKUP_S: Final = 0.5
_LONGEST_MESSAGE: Final = 200
# So many characters of a password in a row are not told.
_TELLING: Final = 6
# Seconds, but for the last: ms after which the kernel gives up what a server does not take, so that no connection to one that is
# frozen stays for ever. What a system does not have is left out.
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 5000}
_OPTIONS: Final[dict[str, Any]] = {
    "max_connections": 1,
    "protocol": 2,
    "retry": Retry(NoBackoff(), 0),
    "socket_timeout": None,
    "socket_connect_timeout": _END_S,
    "health_check_interval": 0,
    # Otherwise the library tells its name and version in two commands more, which an ACL may forbid.
    **({"driver_info": redis.DriverInfo("", "")} if hasattr(redis, "DriverInfo") else {"lib_name": None, "lib_version": None}),
}

Address = tuple[str, int]
T = TypeVar("T")


class _Parser(_AsyncRESP2Parser):
    """Refuses what is too long before it is read; only flat arrays are expected of any server."""

    async def read_response(self, disable_decoding: bool = False) -> Any:
        """As the base class."""
        self._left, self._arrays = MOST_BYTES, 0
        return await super().read_response(disable_decoding=disable_decoding)

    async def _readline(self) -> bytes:
        line: bytes = await super()._readline()
        if line[:1] == b"*":
            self._arrays += 1
            if self._arrays > 1 or _size(line) > MOST_ITEMS:
                raise InvalidResponse(f"found an array {line[:32]!r}, expected one of at most {MOST_ITEMS} items")
        elif line[:1] == b"$":
            self._left -= _size(line)
            if self._left < 0:
                raise InvalidResponse(f"found a string {line[:32]!r}, expected at most {MOST_BYTES} bytes of them")
        return line


def _size(line: bytes) -> int:
    # Ten digits: ``int`` takes a time that grows with the square of them. -1 is how nothing is told.
    return int(line[1:]) if re.fullmatch(rb".(-1|[0-9]{1,10})", line) else MOST_BYTES + 1


class Clients:
    """A few clients of one server, found anew after every failure.

    Args:
        settings: where it is.
        probe: a key of the fleet's; the node of a cluster that holds it holds all of them.
        most: calls at once.
        spare: clients that are kept connected.
    """

    def __init__(self, settings: FleetSettings, *, probe: str, most: int, spare: int) -> None:
        self._settings = settings
        self._probe = probe
        self._most = most
        self._spare = spare
        self._room = asyncio.Semaphore(most)
        # The one that was used longest ago is the first.
        self._idle: deque[Redis] = deque()
        self._open: set[Redis] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._tasks = Tasks(on_error=_untold)
        # Where the server is, once found; until ``renew``.
        self._place: Address | str | None = None
        # Counts ``renew``: a client from before is not used again.
        self._age = 0
        self._lookups = 0
        self._lookups_of: dict[str, asyncio.Future[float]] = {}
        self._tls: tuple[Sequence[object], ssl.SSLContext] | None = None
        self._closed = False
        self._answered = False  # at least once

    @property
    def connected(self) -> bool:
        """Whether one is free, and was connected when it was last used."""
        return bool(self._idle)

    async def evaluate(
        self, script: Script, keys: Sequence[str], arguments: Sequence[bytes | str | int], *, read: Callable[[Any], T]
    ) -> T:
        """Run a script and return what is read from its answer; a server that does not know the script yet is given it.

        Raises:
            Exception: there is no server, or it says no, or ``read`` says that the answer is none.
        """
        async with self._borrow() as client:
            try:
                answer = await client.evalsha(script.sha, len(keys), *keys, *arguments)
            except NoScriptError:
                answer = await client.eval(script.source, len(keys), *keys, *arguments)
            found = read(answer)
            self._answered = True
            return found

    async def fill(self) -> None:
        """Connect as many as are to be spare.

        Raises:
            Exception: as ``evaluate``.
        """
        while len(self._open) < self._spare:
            async with self._borrow(new=True) as client:
                # Costs nothing; and a server that has no room for a client says so only in the place of an answer.
                await client.zcard(self._probe)

    def renew(self) -> None:
        """None of the clients is used again, and the server is looked for anew: it may be another one by now."""
        self._age += 1
        self._place = None
        while self._idle:
            self._let_go(self._idle.popleft())

    async def close(self) -> None:
        """End all connections, those in use included, and wait for that, at most ``_END_S``. Later calls fail at once."""
        self._closed = True
        for client in list(self._open):
            self._let_go(client)
        self._idle.clear()
        async with contextlib.AsyncExitStack() as calls:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_S):
                    # Calls that are under way fail now, and let go of what they have opened meanwhile.
                    for _ in range(self._most):
                        await calls.enter_async_context(self._room)
                    while self._ending:
                        await asyncio.wait(self._ending)

    def failure(self, error: Exception, *, after_s: float | None = None) -> ExchangeError:
        """Return what to tell of an exception. It may quote what a server sent, and a server what it was sent.

        Args:
            error: of a call.
            after_s: how long the call was given.
        """
        if isinstance(error, ExchangeError):
            return error
        if type(error) is TimeoutError and after_s is not None:
            return ExchangeError(f"no answer within {after_s:g} s{self._advice(error)}")
        settings, text = self._settings, str(error)
        for secret in (settings.password, settings.sentinel_password):
            if secret is not None and _tells(text, secret.reveal()):
                text = "the server repeats a password"
        text = "".join(char if char.isprintable() else "?" for char in text[:_LONGEST_MESSAGE])
        told = f"{type(error).__name__}: {text}" if text else type(error).__name__
        return ExchangeError(told + self._advice(error))

    def _advice(self, error: Exception) -> str:
        """What may be wrong with the configuration, while no server has ever answered."""
        if self._answered:
            return ""
        text = str(error)
        unauthenticated = any(word in text for word in ("unauthenticated", "NOAUTH", "Authentication required"))
        if self._settings.password is None and unauthenticated:
            return "; it asks for a password (redis_password)"
        if isinstance(error, TimeoutError) and self._settings.tls:
            return "; it may not speak TLS"
        if not self._settings.tls and ("reset by peer" in text or "closed by server" in text):
            return "; it may want TLS (rediss:// or redis_ssl)"
        return ""

    # --- which client -------------------------------------------------------------------------------

    @asynccontextmanager
    async def _borrow(self, *, new: bool = False) -> AsyncIterator[Redis]:
        """Have a client to oneself. When the block does not end well, it is let go of."""
        async with self._room:
            age = self._age
            client = self._idle.popleft() if self._idle and not new else await self._new()
            try:
                yield client
            except BaseException:
                self._let_go(client)
                raise
            if age == self._age and not self._closed:
                self._idle.append(client)
            else:
                self._let_go(client)

    async def _new(self) -> Redis:
        place = await self._find()
        if not isinstance(place, str):
            await self._look_up(place[0])
        return self._client(place)

    def _let_go(self, client: Redis) -> None:
        self._open.discard(client)
        task = self._tasks.spawn(client.aclose(), name="fleet connection ends", expected=(Exception,))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    # --- where the server is ------------------------------------------------------------------------

    async def _look_up(self, host: str) -> None:
        """Return when a name can be looked up, and that quickly.

        The dial looks it up by itself, in one of the few threads that the event loop has for this, and a lookup cannot be
        given up: those of a name server that hangs would take all of them, and with them the dials of every session. So a
        thread of our own, never more than one for a name, finds out first.

        Raises:
            ExchangeError: it took long.
            OSError: there is no such name.
        """
        try:
            ipaddress.ip_address(host)
            return
        except ValueError:
            pass
        lookup = self._lookups_of.get(host)
        if lookup is None:
            lookup = self._lookups_of[host] = _lookup(host)
            lookup.add_done_callback(partial(self._looked_up, host))
        seconds = await asyncio.shield(lookup)
        if seconds > _SLOW_LOOKUP_S:
            raise ExchangeError(f"the name {host} took {seconds:.1f} s to look up, expected at most {_SLOW_LOOKUP_S:g} s")

    def _looked_up(self, host: str, lookup: asyncio.Future[float]) -> None:
        del self._lookups_of[host]
        if not lookup.cancelled():
            lookup.exception()  # nobody may wait any more

    async def _find(self) -> Address | str:
        settings = self._settings
        if settings.kind == "single":
            return settings.path if settings.path is not None else settings.nodes[0]
        if self._place is None:
            age = self._age
            place = await self._ask_around()
            if age != self._age:
                return place
            self._place = place
        return self._place

    async def _ask_around(self) -> Address:
        """Ask each of several sentinels or nodes until one is of help, a different one first each time."""
        nodes = self._settings.nodes
        what, ask = ("sentinel", self._ask_sentinel) if self._settings.kind == "sentinel" else ("node", self._follow)
        self._lookups += 1
        reasons = []
        for turn in range(len(nodes)):
            node = nodes[(self._lookups + turn) % len(nodes)]
            try:
                async with asyncio.timeout(_ONE_OF_SEVERAL_S if len(nodes) > 1 else None):
                    await self._look_up(node[0])
                    return await ask(node)
            except Exception as error:
                reasons.append(f"{node[0]}:{node[1]}: {self.failure(error)}")
        raise ExchangeError(f"no {what} is of help: {'; '.join(reasons)[:1000]}")

    async def _ask_sentinel(self, sentinel: Address) -> Address:
        client: Any = self._client(sentinel, of_sentinel=True)
        try:
            # The method for it fails with a ``TypeError`` in redis-py 6.4 and 7.0.
            found = await client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self._settings.service)
        finally:
            self._let_go(client)
        if found is None:
            raise ExchangeError(f"knows no master {self._settings.service!r}")
        host, port = found
        return host.decode(), port

    async def _follow(self, node: Address) -> Address:
        # Twice moved: a failover that not all nodes know of yet.
        for _ in range(3):
            client = self._client(node)
            try:
                await client.zcard(self._probe)
            except MovedError as moved:
                # A node may leave its host out: it is the one that was asked.
                node = moved.host or node[0], moved.port
            else:
                return node
            finally:
                self._let_go(client)
        raise ExchangeError("found the keys moved again and again, expected them on one node")

    # --- one client ---------------------------------------------------------------------------------

    def _client(self, place: Address | str, *, of_sentinel: bool = False) -> Redis:
        """Return a client that connects at its first call."""
        if self._closed:
            raise ExchangeError("the exchange is closed")
        settings = self._settings
        username, password = settings.username, settings.password
        if of_sentinel:
            username, password = settings.sentinel_username, settings.sentinel_password
        options: dict[str, Any] = {
            **_OPTIONS,
            "parser_class": _Parser,
            "username": username,
            "password": None if password is None else password.reveal(),
        }
        if not of_sentinel:
            options["db"] = settings.db
        if isinstance(place, str):
            options |= {"connection_class": UnixDomainSocketConnection, "path": place}
        else:
            keepalive = {getattr(socket, name): value for name, value in _KEEPALIVE.items() if hasattr(socket, name)}
            options |= {"host": place[0], "port": place[1], "socket_keepalive": True, "socket_keepalive_options": keepalive}
            if settings.tls:
                options |= {"connection_class": _TlsConnection, "context": self._context()}
        client = Redis.from_pool(ConnectionPool(**options))
        self._open.add(client)
        return client

    def _context(self) -> ssl.SSLContext:
        files = (self._settings.ca_file, self._settings.client_cert, self._settings.client_key)
        stamps = [stamp_of(path) for path in files]
        if self._tls is None or self._tls[0] != stamps:
            # Certificates are short-lived, and are replaced under the same name.
            self._tls = (stamps, _tls_context(self._settings))
        return self._tls[1]


def _lookup(host: str) -> asyncio.Future[float]:
    """Look a name up in a thread that nobody waits for; the result is the seconds that it took."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[float] = loop.create_future()

    def settle(seconds: float, error: OSError | None) -> None:
        if found.done():
            return
        if error is None:
            found.set_result(seconds)
        else:
            found.set_exception(error)

    def run() -> None:
        started, failed = time.monotonic(), None
        try:
            socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            failed = error if isinstance(error, OSError) else OSError(f"{host!r} is no name")
        # The loop may be closed by now.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, time.monotonic() - started, failed)

    threading.Thread(target=run, name=f"look up {host}", daemon=True).start()
    return found


class _TlsConnection(SSLConnection):
    """Has its TLS context from us."""

    def __init__(self, *, context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context.context = context


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
        raise ExchangeError(f"certificate authorities {settings.ca_file!r}: {exc}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.client_cert is None:
        return context
    try:
        context.load_cert_chain(settings.client_cert, settings.client_key, password=_no_password)
    except (OSError, ValueError) as exc:
        raise ExchangeError(f"client certificate {settings.client_cert!r}: {exc}") from exc
    return context


def _no_password() -> str:
    # Without a callback OpenSSL asks on the terminal, and the whole process waits for an answer.
    raise ValueError("the key is encrypted, expected one that is not")


def _tells(text: str, secret: str) -> bool:
    """Whether a part of a secret is in a text: servers cut short what they repeat."""
    pieces = range(max(1, len(secret) - _TELLING + 1))
    return bool(secret) and any(secret[start : start + _TELLING] in text for start in pieces)


def _untold(name: str, error: Exception) -> None:
    """How a connection ends matters to nobody; it never comes to this, for all exceptions are expected."""
