"""Where listening sockets come from, and whose they are among several workers."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from router.config.settings import ListenSettings, ServerSettings
from router.events import Observers
from router.handover import Given
from router.succession import Inheritance, Succession, deal


def test_all_have_the_same_number_and_nothing_is_nobodys() -> None:
    """What does not go round evenly is everybody's."""
    assert deal("abcd", 2) == [["a", "c"], ["b", "d"]]
    assert deal("abcde", 2) == [["a", "c", "e"], ["b", "d", "e"]]
    assert deal("a", 3) == [["a"], ["a"], ["a"]]


def test_every_worker_accepts_at_every_address_of_systemds() -> None:
    """Two addresses and two workers: neither address is one worker's alone."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        succession = Succession(
            ServerSettings(listen=ListenSettings(host="127.0.0.1", port=sockets[0].getsockname()[1])),
            Inheritance(given=[Given(role="clients", sock=sock) for sock in sockets], kept=True),
            workers=2,
            watch=lambda sock, callback: None,
            tell=Observers(),
        )
        assert succession.clients == [sockets, sockets]
        succession.close()
