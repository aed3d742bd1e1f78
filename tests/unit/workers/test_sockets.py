"""The listening sockets of several workers."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import pytest

from router.config.settings import ListenSettings
from router.workers.sockets import address_of, open_listeners


def close(listeners: Iterable[Iterable[socket.socket]]) -> None:
    """Close all."""
    for own in listeners:
        for sock in own:
            sock.close()


def test_all_workers_listen_on_one_port() -> None:
    """Port 0 is a free port, the same for all; connections reach one of the sockets each."""
    listeners = open_listeners(ListenSettings(host="127.0.0.1", port=0), 3)
    try:
        (port,) = {address_of(sock)[1] for own in listeners for sock in own}
        assert [len(own) for own in listeners] == [1, 1, 1]
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
        served = []
        for (sock,) in listeners:
            count = 0
            try:
                while True:
                    sock.accept()[0].close()
                    count += 1
            except BlockingIOError:
                served.append(count)
        assert sum(served) == 60
        # That one of three gets none happens once in 10^10 runs.
        assert all(served), served
        for client in clients:
            client.close()
    finally:
        close(listeners)


@pytest.mark.parametrize("options", [(), (socket.SO_REUSEADDR,), (socket.SO_REUSEADDR, socket.SO_REUSEPORT)])
def test_a_port_that_somebody_listens_on_is_taken(options: tuple[int, ...]) -> None:
    """Even by somebody who would share it."""
    with socket.socket() as holder:
        for option in options:
            holder.setsockopt(socket.SOL_SOCKET, option, 1)
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(OSError, match="address already in use"):
            open_listeners(ListenSettings(host="127.0.0.1", port=port), 2)


def test_a_port_whose_connections_have_just_ended_is_free() -> None:
    """A restart need not wait for TIME_WAIT."""
    listeners = open_listeners(ListenSettings(host="127.0.0.1", port=0), 1)
    host, port = address_of(listeners[0][0])
    client = socket.create_connection((host, port))
    listeners[0][0].setblocking(True)
    accepted, _ = listeners[0][0].accept()
    # The server's side ends first: its end of the connection is the one that lingers.
    accepted.close()
    assert client.recv(1) == b""
    client.close()
    close(listeners)
    close(open_listeners(ListenSettings(host=host, port=port), 2))


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_cannot_be_had(host: str) -> None:
    """Of another machine, or of none."""
    with pytest.raises(OSError) as caught:
        open_listeners(ListenSettings(host=host, port=0), 2)
    assert caught.value.strerror


def test_nothing_is_left_open_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a later socket fails, those that were opened are closed."""
    opened: list[socket.socket] = []
    bind = socket.socket.bind

    def third_fails(self: socket.socket, address: tuple[str, int]) -> None:
        opened.append(self)
        if len(opened) == 3:
            raise OSError(12, "Cannot allocate memory")
        bind(self, address)

    monkeypatch.setattr(socket.socket, "bind", third_fails)
    with pytest.raises(OSError, match="cannot allocate memory"):
        open_listeners(ListenSettings(host="127.0.0.1", port=0), 4)
    assert [sock.fileno() for sock in opened] == [-1, -1, -1]
