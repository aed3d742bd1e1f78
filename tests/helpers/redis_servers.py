"""Redis and Valkey servers of several versions, started by a test, and what only looks like one.

    @pytest.fixture(params=SERVERS)
    async def server(request, tmp_path):
        async with redis_server(require(request.param), tmp_path) as server:
            yield server

    exchange = RedisExchange(server.settings(), member="a")
    assert await server.cli("PTTL", "key") > 0
    server.freeze()

Everything is on the loopback or a Unix socket, keeps its files in the folder that it is given, and is ended by its process id.
The client in here is one of its own, so that what a test sees has not gone through the code that it tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from tempfile import mkdtemp
from typing import Any

from router.config.settings import FleetSettings
from tests.helpers.ports import free_port
from tests.helpers.tls import Authority

#: Parts that are servers: whatever holds for one must hold for each.
SERVERS = ("redis-6.2", "redis-7.0", "valkey")
# Longest wait for anything that must happen; only a fault reaches it.
PATIENCE_S = 20.0
# Between two looks at what makes no event.
_POLL_S = 0.02


class ServerSaid(Exception):
    """An error that a server answered."""


# --- a client ------------------------------------------------------------------------------------


class Client:
    """A connection for raw commands."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def call(self, *command: str | bytes | int | float) -> Any:
        """Send a command and return its answer; strings are ``str`` where they are UTF-8.

        Raises:
            ServerSaid: the answer is an error.
        """
        parts = [part if isinstance(part, bytes) else str(part).encode() for part in command]
        self._writer.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
        async with asyncio.timeout(PATIENCE_S):
            return await self._answer()

    async def _answer(self) -> Any:
        line = await self._reader.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            raise ServerSaid(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"*":
            return None if rest == b"-1" else [await self._answer() for _ in range(int(rest))]
        if kind == b"$":
            if rest == b"-1":
                return None
            data = (await self._reader.readexactly(int(rest) + 2))[:-2]
            with contextlib.suppress(UnicodeDecodeError):
                return data.decode()
            return data
        raise ConnectionError(f"found {line!r}, expected an answer")

    async def close(self) -> None:
        """End it."""
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


# --- a server ------------------------------------------------------------------------------------


class RedisServer:
    """One process.

    Args:
        program: its path.
        folder: for its files.
        options: lines of its configuration, values as they are written there.
        unix: listens on a socket and on no port.
        tls: issues its certificate; it then asks for one of the client.
        password: of the default user.
        lines: more of its configuration.
        flags: more arguments.

    Attributes:
        port: on the loopback, the same after a new start; 0 with ``unix``.
        path: of its socket.
    """

    def __init__(
        self,
        program: str,
        folder: Path,
        options: Mapping[str, str | int] | None = None,
        *,
        unix: bool = False,
        tls: Authority | None = None,
        password: str | None = None,
        lines: Sequence[str] = (),
        flags: Sequence[str] = (),
    ) -> None:
        # Of its own, and short: the path of a socket has 107 bytes.
        self._folder = Path(mkdtemp(prefix="redis-", dir=None if unix else folder))
        self._owns_folder = unix
        # The nodes of a cluster take the second one for each other.
        self.port = 0 if unix else free_port(and_above=10_000)
        self.path = str(self._folder / "socket") if unix else None
        # Some look at the name that they are started by.
        self._program = self._folder / ("valkey-server" if "valkey" in Path(program).name else "redis-server")
        self._program.symlink_to(program)
        self._tls: ssl.SSLContext | None = None
        arguments: dict[str, str | int] = {
            "bind": "127.0.0.1",
            "port": 0 if tls else self.port,
            "dir": f'"{self._folder}"',
            "save": '""',
            "appendonly": "no",
            "daemonize": "no",
        }
        if self.path is not None:
            arguments["unixsocket"] = self.path
        self.files: dict[str, str] = {}
        if tls is not None:
            pair, client = tls.issue(), tls.issue("client")
            self.files = {
                "ca_file": str(tls.ca_file),
                "client_cert": str(client.certificate),
                "client_key": str(client.key),
            }
            arguments |= {
                "tls-port": self.port,
                "tls-cert-file": str(pair.certificate),
                "tls-key-file": str(pair.key),
                "tls-ca-cert-file": str(tls.ca_file),
                "tls-auth-clients": "yes",
            }
            self._tls = ssl.create_default_context(cafile=self.files["ca_file"])
            self._tls.load_cert_chain(self.files["client_cert"], self.files["client_key"])
        if password is not None:
            arguments["requirepass"] = password
        self._password = password
        self._lines = [*(f"{name} {value}" for name, value in (arguments | dict(options or {})).items()), *lines]
        self._flags = list(flags)
        self._process: Process | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return "127.0.0.1", self.port

    def settings(self, **more: Any) -> FleetSettings:
        """Return what leads a router to it."""
        if self.path is not None:
            return FleetSettings(path=self.path, **more)
        return FleetSettings(nodes=(self.address,), tls=self._tls is not None, **{**self.files, **more})

    async def start(self) -> None:
        """Start it, empty, and wait until it answers.

        Raises:
            AssertionError: it ended, or did not answer in time.
        """
        assert self._process is None or self._process.returncode is not None, "it runs"
        config = self._folder / "server.conf"
        config.write_text("\n".join(self._lines))
        with (self._folder / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                str(self._program),
                str(config),
                *self._flags,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ.get("PATH", "")},
            )
        await until(self._answers, self._said)

    async def _answers(self) -> bool:
        assert self._process is not None and self._process.returncode is None, self._said()
        try:
            return bool(await self.cli("PING") == "PONG")
        except (OSError, EOFError):
            return False

    def _said(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-2000:]

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A connection of a test's own, until the block ends."""
        async with asyncio.timeout(PATIENCE_S):
            if self.path is not None:
                reader, writer = await asyncio.open_unix_connection(self.path)
            else:
                reader, writer = await asyncio.open_connection(*self.address, ssl=self._tls)
        client = Client(reader, writer)
        try:
            if self._password is not None:
                await client.call("AUTH", self._password)
            yield client
        finally:
            await client.close()

    async def cli(self, *command: str | bytes | int | float) -> Any:
        """Run one command on a connection of its own."""
        async with self.client() as client:
            return await client.call(*command)

    async def config_set(self, **options: str | int) -> None:
        """Change options; ``_`` stands for ``-``."""
        for name, value in options.items():
            await self.cli("CONFIG", "SET", name.replace("_", "-"), value)

    async def info(self, section: str) -> dict[str, str]:
        """Return a section of INFO."""
        lines = str(await self.cli("INFO", section)).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    async def commands(self) -> dict[str, int]:
        """Return how often each command was called since its start, failed ones included; those of scripts count as well."""
        stats = await self.info("commandstats")
        return {name.removeprefix("cmdstat_"): int(fields.split(",")[0].removeprefix("calls=")) for name, fields in stats.items()}

    async def clients(self) -> int:
        """Return how many clients are connected, but for the one that asks."""
        return int((await self.info("clients"))["connected_clients"]) - 1

    async def ttls(self) -> dict[str, int]:
        """Return every key of database 0 with the milliseconds that it has left; -1 is for ever."""
        async with self.client() as client:
            keys: set[str] = set()
            cursor = "0"
            while True:
                cursor, found = await client.call("SCAN", cursor, "COUNT", 1000)
                keys.update(found)
                if cursor == "0":
                    return {key: await client.call("PTTL", key) for key in sorted(keys)}

    def freeze(self) -> None:
        """It runs no more, and its connections stay (SIGSTOP)."""
        self._running.send_signal(SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        self._running.send_signal(SIGCONT)

    async def kill(self) -> None:
        """End it at once, frozen or not; nothing if it has ended."""
        if self._process is None:
            return
        if self._process.returncode is None:
            self._process.kill()
        async with asyncio.timeout(PATIENCE_S):
            await self._process.wait()

    async def end(self) -> None:
        """End it, and what it left outside of the folder that it was given."""
        await self.kill()
        if self._owns_folder:
            for file in self._folder.iterdir():
                file.unlink()
            self._folder.rmdir()

    @property
    def _running(self) -> Process:
        assert self._process is not None and self._process.returncode is None, "it does not run"
        return self._process


@asynccontextmanager
async def redis_server(
    program: str, folder: Path, options: Mapping[str, str | int] | None = None, **more: Any
) -> AsyncIterator[RedisServer]:
    """Run a server until the block ends; arguments as for ``RedisServer``."""
    server = RedisServer(program, folder, options, **more)
    try:
        await server.start()
        yield server
    finally:
        await server.end()


# --- several of them -----------------------------------------------------------------------------

MASTER = "the-master"


class Watched:
    """A master, its replica and a sentinel that watches them.

    Attributes:
        servers: master and replica, as they were at the start.
        sentinel: one that decides alone.
    """

    def __init__(self, servers: tuple[RedisServer, RedisServer], sentinel: RedisServer) -> None:
        self.servers = servers
        self.sentinel = sentinel

    def settings(self, **more: Any) -> FleetSettings:
        """Return what leads a router to whichever is the master."""
        return FleetSettings(kind="sentinel", nodes=(self.sentinel.address,), service=MASTER, **more)

    async def master(self) -> int:
        """Return the port of the master, as the sentinel has it."""
        return int((await self.sentinel.cli("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER))[1])


@asynccontextmanager
async def watched_servers(program: str, folder: Path, *, password: str | None = None) -> AsyncIterator[Watched]:
    """Run a master, a replica and a sentinel until the block ends.

    Args:
        program: path of the server.
        folder: for their files.
        password: that the sentinel asks for.
    """
    async with (
        redis_server(program, folder) as first,
        redis_server(program, folder, {"replicaof": f"127.0.0.1 {first.port}"}) as second,
        redis_server(
            program,
            folder,
            password=password,
            lines=[
                f"sentinel monitor {MASTER} 127.0.0.1 {first.port} 1",
                f"sentinel down-after-milliseconds {MASTER} 500",
                f"sentinel failover-timeout {MASTER} 2000",
            ],
            flags=["--sentinel"],
        ) as sentinel,
    ):

        async def replicated() -> bool:
            if (await second.info("replication")).get("master_link_status") != "up":
                return False
            return bool(len(await sentinel.cli("SENTINEL", "REPLICAS", MASTER)) == 1)

        await until(replicated)
        yield Watched((first, second), sentinel)


SLOTS = 16384


class Cluster:
    """Masters that share the slots in equal parts.

    Attributes:
        nodes: the servers.
    """

    def __init__(self, nodes: Sequence[RedisServer]) -> None:
        self.nodes = nodes

    def settings(self, **more: Any) -> FleetSettings:
        """Return what leads a router to it, by all of its nodes."""
        return FleetSettings(kind="cluster", nodes=tuple(node.address for node in self.nodes), **more)

    async def owner(self, key: str) -> RedisServer:
        """Return the node that holds a key."""
        slot = await self.nodes[0].cli("CLUSTER", "KEYSLOT", key)
        for first, last, (_, port, *_rest), *_replicas in await self.nodes[0].cli("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"nobody holds slot {slot}")

    async def move(self, key: str, to: RedisServer) -> None:
        """Give a key's slot to another node; its keys are lost."""
        owner = await self.owner(key)
        slot = await owner.cli("CLUSTER", "KEYSLOT", key)
        new = await to.cli("CLUSTER", "MYID")
        for found in await owner.cli("CLUSTER", "GETKEYSINSLOT", slot, 1000):
            await owner.cli("DEL", found)
        for node in (to, *(other for other in self.nodes if other is not to)):
            await node.cli("CLUSTER", "SETSLOT", slot, "NODE", new)

        async def known() -> bool:
            return await self.owner(key) is to

        await until(known)


@asynccontextmanager
async def cluster(program: str, folder: Path, *, masters: int = 3) -> AsyncIterator[Cluster]:
    """Run a cluster until the block ends.

    Args:
        program: path of the server.
        folder: for its files.
        masters: how many.
    """
    async with contextlib.AsyncExitStack() as stack:
        nodes: list[RedisServer] = []
        options: dict[str, str | int] = {"cluster-enabled": "yes", "cluster-node-timeout": 5000}
        for _ in range(masters):
            nodes.append(await stack.enter_async_context(redis_server(program, folder, options)))
        for index, node in enumerate(nodes):
            await node.cli("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            first, last = SLOTS * index // masters, SLOTS * (index + 1) // masters
            await node.cli("CLUSTER", "ADDSLOTS", *range(first, last))
            await node.cli("CLUSTER", "MEET", *nodes[0].address)
        for node in nodes:
            await until(partial(_is_whole, node, masters))
        yield Cluster(nodes)


async def _is_whole(node: RedisServer, masters: int) -> bool:
    lines = str(await node.cli("CLUSTER", "INFO")).splitlines()
    return {"cluster_state:ok", f"cluster_size:{masters}", f"cluster_known_nodes:{masters}"} <= set(lines)


# --- what is none, and what is slow --------------------------------------------------------------

#: Name → what it answers to anything (``ECHO``: what it was sent), and whether it goes on with that for ever.
ECHO = b"-ERR unknown command, with args beginning with: "
GARBAGE: Mapping[str, tuple[bytes, bool]] = {
    "silence": (b"", False),
    "junk": (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", False),
    "binary": (bytes(range(256)) * 16, False),
    "half": (b"*5\r\n$1\r\n1\r\n:17", False),
    "endless line": (b"+" + b"x" * 65536, True),
    "endless string": (b"$99999999999\r\n", True),
    "long string": (b"$536870912\r\n" + b"x" * 65536, True),
    "endless array": (b"*2147483647\r\n" + b":1\r\n" * 4096, True),
    "nested arrays": (b"*9\r\n" * 4096, True),
    "negative sizes": (b"*-5\r\n$-7\r\n", False),
    "digits": (b"$" + b"9" * 30000 + b"\r\n", False),
    "no numbers": (b"*x\r\n:y\r\n$z\r\n", False),
    "another type": (b":1\r\n", False),
    "nothing": (b"$-1\r\n", False),
    "too few": (b"*1\r\n$1\r\n1\r\n", False),
    "another call's": (b"*5\r\n$9\r\n123456789\r\n:1700000000000\r\n:1\r\n:0\r\n$2\r\n{}\r\n", False),
    "error": (b"-ERR \xff\x00 nonsense\r\n", False),
    "error inside": (b"*5\r\n-ERR .\r\n-ERR a\r\n-ERR b\r\n-ERR c\r\n-ERR d\r\n", False),
    "moved to nowhere": (b"-MOVED 1\r\n", False),
    "echo": (ECHO, False),
    "half an echo": (ECHO, False),
    "hangs up": (b"", True),
}


@asynccontextmanager
async def garbage_server(kind: str, *, port: int = 0) -> AsyncIterator[int]:
    """A port, a free one unless given, where whatever is sent is answered by something of ``GARBAGE``."""
    answer, goes_on = GARBAGE[kind]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                if answer is ECHO:
                    # What Redis itself repeats of an argument is cut short.
                    told = data.replace(b"\r\n", b" ")
                    writer.write(answer + (told if kind == "echo" else told[:-8]) + b"\r\n")
                else:
                    writer.write(answer)
                await writer.drain()
                while goes_on and answer and not writer.is_closing():
                    writer.write(b"x" * 65536 if answer.startswith((b"+", b"$")) else answer)
                    await writer.drain()
                    await asyncio.sleep(0)
                if goes_on:
                    break
        except OSError:
            pass
        finally:
            writer.transport.abort()

    async with handled(talk, port=port) as taken:
        yield taken


#: Name → what it answers to anything, and what comes behind that for ever.
FLOODS: Mapping[str, tuple[bytes, bytes]] = {
    "a string": (b"$536870912\r\n", b"x" * 65536),
    "strings": (b"*8000\r\n", b"$60000\r\n" + b"x" * 60000 + b"\r\n"),
    "items": (b"*2147483647\r\n", b":1\r\n" * 16384),
}


@dataclass(slots=True)
class Flooded:
    """A connection: bytes that were taken of it by its other end, or by what is in between."""

    taken: int = 0


class Flood:
    """A port where a thread sends as fast as the other end takes it.

    Attributes:
        port: on the loopback.
        connections: those that were made.
    """

    def __init__(self, kind: str) -> None:
        self._head, self._body = FLOODS[kind]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections: list[Flooded] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                self.connections.append(Flooded())
                self._threads.append(threading.Thread(target=self._talk, args=(peer, self.connections[-1])))
                self._threads[-1].start()

    def _talk(self, peer: socket.socket, connection: Flooded) -> None:
        with peer, contextlib.suppress(OSError):
            peer.settimeout(PATIENCE_S)
            if not peer.recv(65536):
                return
            peer.sendall(self._head)
            while True:
                peer.sendall(self._body)
                connection.taken += len(self._body)

    def close(self) -> None:
        """Wait until those who are connected have had enough."""
        # A listener that is closed while it is waited on stays; one that is shut down does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


@asynccontextmanager
async def flood_server(kind: str) -> AsyncIterator[Flood]:
    """Run one until the block ends, in which all connections to it must end."""
    flood = Flood(kind)
    try:
        yield flood
    finally:
        await asyncio.to_thread(flood.close)


class Proxy:
    """A port that leads to a server, and holds answers back when told to.

    Attributes:
        port: on the loopback.
        asked: what came through towards the server, in pieces of the stream, oldest first.
        dialled: connections that were made to it.
        most_open: connections at once.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.port = 0
        self.asked: list[bytes] = []
        self.dialled = 0
        self.most_open = 0
        self._open = 0
        self._target = target
        self._holds: bytes | None = None
        self._released = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return "127.0.0.1", self.port

    def hold(self, what: bytes = b"") -> None:
        """From now on the answers to requests with ``what`` in them do not get through."""
        self._holds = what
        self._released.clear()

    def let_go(self) -> None:
        """What was held back goes on its way, and all else."""
        self._holds = None
        self._released.set()

    async def holding(self, what: bytes = b"") -> None:
        """Wait until a request with ``what`` in it was asked."""

        async def asked() -> bool:
            return any(what in piece for piece in self.asked)

        await until(asked)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        self._tasks.add(this_task())
        self.dialled += 1
        self._open += 1
        self.most_open = max(self.most_open, self._open)
        onward: asyncio.StreamWriter | None = None
        flows = asyncio.Event()
        flows.set()
        try:
            answers, onward = await asyncio.open_connection(*self._target)
            self._tasks.add(asyncio.create_task(self._back(answers, writer, flows)))
            while data := await reader.read(2**20):
                if self._holds is not None and self._holds in data:
                    flows.clear()
                    self._tasks.add(asyncio.create_task(self._release(flows)))
                self.asked.append(data)
                onward.write(data)
        except OSError:
            pass
        finally:
            self._open -= 1
            for one in (writer, onward):
                if one is not None:
                    one.transport.abort()

    async def _release(self, flows: asyncio.Event) -> None:
        await self._released.wait()
        flows.set()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await flows.wait()
                writer.write(data)
        writer.transport.abort()

    async def close(self) -> None:
        """Cut everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def proxy(server: RedisServer) -> AsyncIterator[Proxy]:
    """Stand before a server until the block ends."""
    before = Proxy(server.address)
    listener = await asyncio.start_server(before.accept, "127.0.0.1", 0)
    before.port = listener.sockets[0].getsockname()[1]
    try:
        yield before
    finally:
        listener.close()
        await all_begun()
        await before.close()
        await listener.wait_closed()


# --- parts ---------------------------------------------------------------------------------------


@asynccontextmanager
async def handled(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], *, port: int = 0
) -> AsyncIterator[int]:
    """Listen at a port, a free one unless given, and give each connection to ``handler``; what runs at the end is cancelled."""
    tasks: set[asyncio.Task[Any]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(this_task())
        await handler(reader, writer)

    server = await asyncio.start_server(accept, "127.0.0.1", port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await all_begun()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def all_begun() -> None:
    """Let a connection that was accepted in the last moment reach its handler: nobody else would close it."""
    # asyncio says nothing of it. These are the turns of the loop from accepting to the handler's first step, and one more.
    for _ in range(5):
        await asyncio.sleep(0)


def this_task() -> asyncio.Task[Any]:
    """Return the task that runs."""
    task = asyncio.current_task()
    assert task is not None
    return task


async def until(condition: Callable[[], Awaitable[bool]], why: Callable[[], str] | None = None) -> None:
    """Look again and again until a condition holds.

    Raises:
        AssertionError: it did not in time.
    """
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if await condition():
                    return
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise AssertionError(why() if why is not None else "it did not come to that") from None


def acl_user(name: str, password: str, prefix: str, commands: str) -> Sequence[str]:
    """Return the command that makes a user who may do little.

    Args:
        name: the user's.
        password: the user's.
        prefix: of the keys.
        commands: names, with spaces between.
    """
    allowed = [f"+{command.lower()}" for command in commands.split()]
    return ["ACL", "SETUSER", name, "reset", "on", f">{password}", f"~{{{prefix}}}:*", *allowed]


# --- a server in trouble, and as it was again -----------------------------------------------------


@asynccontextmanager
async def frozen(server: RedisServer) -> AsyncIterator[None]:
    """It takes connections and answers nothing."""
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


@asynccontextmanager
async def restarted(server: RedisServer) -> AsyncIterator[None]:
    """It is killed, and started again with nothing in it."""
    await server.kill()
    yield
    await server.start()


@asynccontextmanager
async def read_only(server: RedisServer) -> AsyncIterator[None]:
    """It became the replica of a master that is gone."""
    await server.cli("REPLICAOF", "127.0.0.1", 1)
    yield
    await server.cli("REPLICAOF", "NO", "ONE")


@asynccontextmanager
async def out_of_memory(server: RedisServer) -> AsyncIterator[None]:
    """It refuses what would need memory."""
    await server.config_set(maxmemory_policy="noeviction", maxmemory=1)
    yield
    await server.config_set(maxmemory=0)


@asynccontextmanager
async def babbling(server: RedisServer) -> AsyncIterator[None]:
    """Something else listens at its port, and answers with garbage."""
    await server.kill()
    async with garbage_server("junk", port=server.port):
        yield
    await server.start()
