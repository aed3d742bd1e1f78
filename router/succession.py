"""A router's place between the one before it and the one after it: where its listening sockets come from and where they go.

They are a running router's (``router.handover``), else systemd's (``router.systemd``), else newly opened ones. Whatever their
number, every one is accepted from: of the sockets of an address each worker gets as many as all can have, and what is left over
belongs to all of them together. So nothing is lost when the number of workers changes; a socket that nobody accepted from would
collect its share of connections, and one that was closed would reset it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from router.config.loader import is_loopback
from router.config.settings import ListenSettings, ServerSettings
from router.events import Notice, Observers
from router.handover import Given, HandoverFailed, Point, Predecessor, Role, Watch, take_over
from router.systemd import activated, notify
from router.workers.sockets import Address, address_of, open_address, resolve

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inheritance:
    """What a process has found at its start.

    Attributes:
        given: listening sockets.
        kept: they are systemd's, who keeps them whatever becomes of this process.
        predecessor: who gave them, when it was a router.
    """

    given: Sequence[Given] = ()
    kept: bool = False
    predecessor: Predecessor | None = None

    @property
    def places(self) -> tuple[ListenSettings, ...]:
        """Where systemd listens for this process, whatever the configuration says."""
        if not self.kept:
            return ()
        return tuple(ListenSettings(host=host, port=port) for host, port in map(address_of, (one.sock for one in self.given)))


#: For a process that opens its addresses itself.
NOTHING: Final = Inheritance()


def inherit(server: ServerSettings, *, environ: MutableMapping[str, str] = os.environ) -> Inheritance:
    """Look for listening sockets that are there already. Blocks, for seconds at most.

    Args:
        server: the settings.
        environ: see ``activated``.

    Raises:
        HandoverFailed: there are some, and they cannot be used.
    """
    mine = activated(environ, operators=server.ops_listen is not None)
    if server.handover is not None and (found := take_over(server.handover)) is not None:
        given, predecessor = found
        # Those of the predecessor may be the same ones: it got them from systemd.
        for one in mine:
            one.sock.close()
        return Inheritance(given=given, kept=bool(mine), predecessor=predecessor)
    return Inheritance(given=mine, kept=bool(mine))


def deal(sockets: Sequence[T], workers: int) -> list[list[T]]:
    """Share the sockets of one address out, so that each is somebody's and all workers have the same number.

    Args:
        sockets: at least one.
        workers: at least one.

    Returns:
        Worker → its sockets; those that do not go round evenly are everybody's.
    """
    even = len(sockets) - len(sockets) % workers
    return [[*sockets[worker:even:workers], *sockets[even:]] for worker in range(workers)]


class Succession:
    """The listening sockets of a router, from its predecessor to its successor.

    Args:
        server: the settings.
        inheritance: what was found; its sockets belong to this object from now on.
        workers: processes that accept.
        watch: see ``Point``.
        tell: observers.
        generation: returns the number of the configuration in force.

    Attributes:
        clients, operators: worker → its listening sockets.
        kept: see ``Inheritance``.

    Raises:
        HandoverFailed: the handover's own path cannot be had, or what was found does not fit the settings.
        OSError: an address cannot be had.
    """

    def __init__(
        self,
        server: ServerSettings,
        inheritance: Inheritance,
        *,
        workers: int,
        watch: Watch,
        tell: Observers,
        generation: Callable[[], int] = lambda: 1,
    ) -> None:
        self.kept = inheritance.kept
        self._predecessor = inheritance.predecessor
        self._tell = tell
        self._point: Point | None = None
        if server.handover is not None:
            self._point = Point(server.handover, given=self._given, generation=generation, watch=watch, tell=tell)
            self._point.claim()
        try:
            self.clients = self._sockets("clients", server, server.listen, inheritance.given, workers)
            self.operators: list[list[socket.socket]] = [[] for _ in range(workers)]
            if server.ops_listen is not None:
                self.operators = self._sockets("operators", server, server.ops_listen, inheritance.given, workers)
        except BaseException:
            self.close()
            raise
        used = {id(sock) for own in (*self.clients, *self.operators) for sock in own}
        for one in inheritance.given:
            if id(one.sock) not in used:
                facts = {"address": _named(one.sock), "for": one.role, "reason": "the configuration names another"}
                tell(Notice(level="warning", event="inherited address left", facts=facts))
                one.sock.close()

    def listening(self, taken: Callable[[int], None]) -> None:
        """Connections are accepted: have the predecessor stop, and be somebody's predecessor from now on.

        Args:
            taken: see ``Point.open``.
        """
        predecessor, self._predecessor = self._predecessor, None
        if self._point is not None:
            try:
                # First: whoever looks for a router at the path finds the new one or the old one, and never nobody.
                self._point.open(taken)
            except HandoverFailed as error:
                # This router serves. That the next one will find it is not worth its end.
                self._tell(Notice(level="error", event="handover not possible", facts={"error": str(error)}))
        if predecessor is not None:
            facts = {"predecessor": predecessor.pid, "its_generation": predecessor.generation}
            predecessor.accepting()
            self._tell(Notice(level="info", event="taken over", facts=facts))
        notify(*([f"MAINPID={os.getpid()}"] if predecessor is not None else []), "READY=1")

    def close(self) -> None:
        """There is nothing left to hand over."""
        if self._point is not None:
            self._point.close()
        if self._predecessor is not None:
            self._predecessor.close()

    def forget(self) -> None:
        """Let go of the parent's descriptors, in a forked child, but for the listening sockets."""
        if self._point is not None:
            self._point.forget()
        if self._predecessor is not None:
            self._predecessor.close()

    def _given(self) -> list[Given]:
        found: dict[int, Given] = {}
        for role, workers in (("clients", self.clients), ("operators", self.operators)):
            for sock in (sock for own in workers for sock in own):
                # A closed one has no number any more.
                if sock.fileno() >= 0:
                    found.setdefault(sock.fileno(), Given(role="clients" if role == "clients" else "operators", sock=sock))
        return list(found.values())

    def _sockets(
        self, role: Role, server: ServerSettings, listen: ListenSettings, given: Sequence[Given], workers: int
    ) -> list[list[socket.socket]]:
        mine = [one.sock for one in given if one.role == role]
        addresses = resolve(listen)
        dealt: list[list[list[socket.socket]]] = []  # one address after the other
        if self.kept and mine:
            # Whoever wrote the unit has decided where to listen.
            for sock in mine:
                if server.keyless and not is_loopback(address_of(sock)[0]):
                    raise HandoverFailed(
                        f"LISTEN_FDS: found {_named(sock)} without any key, expected general_settings.master_key or "
                        "general_settings.keys, because other hosts can reach that address"
                    )
                if not any(_is_at(sock, address) for address in addresses):
                    facts = {"found": _named(sock), "configured": f"{listen.host}:{listen.port}", "for": role}
                    self._tell(Notice(level="warning", event="address of another place", facts=facts))
            places = dict.fromkeys(address_of(sock) for sock in mine)
            dealt = [deal([sock for sock in mine if address_of(sock) == place], workers) for place in places]
        else:
            for address in addresses:
                there = [sock for sock in mine if _is_at(sock, address)]
                if not there:
                    there = open_address(address, workers, shared=workers > 1)
                dealt.append(deal(there, workers))
        return [[sock for one in own for sock in one] for own in zip(*dealt, strict=True)]


def _is_at(sock: socket.socket, address: Address) -> bool:
    family, (host, port, *_) = address
    found_host, found_port, *_ = sock.getsockname()
    return sock.family == family and found_host == host and port in (0, found_port)


def _named(sock: socket.socket) -> str:
    host, port, *_ = sock.getsockname()
    return f"{host}:{port}"


__all__ = ["NOTHING", "Inheritance", "Succession", "deal", "inherit"]
