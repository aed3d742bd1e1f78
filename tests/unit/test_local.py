"""The client's side of a session in memory: what it keeps is bounded, and given free as it is taken."""

from __future__ import annotations

import asyncio

import pytest

from router.local import BINARY, TEXT, LocalTransport, SessionClosed
from router.relay.frames import CLOSE, PING, encode_frame

MIB = 1024 * 1024


class Receiver:
    """The relay's side: what the program sent, and the watermarks."""

    def __init__(self) -> None:
        self.read = b""
        self.paused = False
        self.losses = 0

    def data(self, data: bytes) -> None:
        self.read += data

    def lost(self, exc: BaseException | None) -> None:
        self.losses += 1

    def writing(self, *, paused: bool) -> None:
        self.paused = paused


def local() -> tuple[LocalTransport, Receiver]:
    """A transport and whoever is at its other end."""
    transport = LocalTransport(max_message_bytes=32 * MIB)
    receiver = Receiver()
    transport.leg.receiver = receiver
    return transport, receiver


@pytest.mark.parametrize(
    ("opcode", "payload"),
    [(TEXT, b"a" * 3000), (TEXT, "声".encode() * 1000), (TEXT, b"\xff" * 3000), (BINARY, b"\0" * 3000), (TEXT, b"")],
)
async def test_what_is_taken_is_free_again(opcode: int, payload: bytes) -> None:
    """Characters were subtracted where bytes had been added: a session in Chinese stalled after some megabytes of text."""
    transport, receiver = local()
    for _ in range(2000):
        transport.leg.write(encode_frame(opcode, payload))
        await transport.receive()
        assert transport.get_write_buffer_size() == 0
        assert not receiver.paused


@pytest.mark.parametrize("payload", [b"", b"x" * 10_000])
async def test_a_program_that_takes_nothing_pauses_its_upstream(payload: bytes) -> None:
    """Above the mark the relay is told to stop, below half of it to go on; empty messages take memory as well."""
    transport, receiver = local()
    count = 0
    while not receiver.paused:
        transport.leg.write(encode_frame(TEXT, payload))
        count += 1
        assert count * max(100, len(payload)) < 2 * MIB
    taken = 0
    while receiver.paused:
        await transport.receive()
        taken += 1
    assert 0.4 * count < taken < 0.6 * count


async def test_sending_waits_while_the_upstream_takes_nothing() -> None:
    """Back-pressure is an ``await`` for the program; the end of the session ends it too."""
    transport, receiver = local()
    transport.leg.pause_reading()
    sending = asyncio.create_task(transport.send(TEXT, b"hello"))
    await asyncio.sleep(0)
    assert receiver.read == b""
    transport.leg.resume_reading()
    await sending
    assert receiver.read[0] == 0x80 | TEXT
    transport.leg.pause_reading()
    sending = asyncio.create_task(transport.send(TEXT, b"never"))
    await asyncio.sleep(0)
    transport.abort()
    with pytest.raises(SessionClosed) as closed:
        await sending
    assert closed.value.code == 1006


async def test_what_came_before_the_end_is_still_received() -> None:
    """Then the code and reason of the CLOSE; it is answered, and the loss is told once."""
    transport, receiver = local()
    transport.leg.write(encode_frame(TEXT, b"last") + encode_frame(PING, b"p") + encode_frame(CLOSE, b"\x0f\xa1why"))
    assert await transport.receive() == "last"
    with pytest.raises(SessionClosed) as closed:
        await transport.receive()
    assert (closed.value.code, closed.value.reason) == (4001, "why")
    await asyncio.sleep(0)
    assert receiver.read.count(bytes([0x80 | CLOSE, 0x80 | 2])) == 1
    transport.close()
    transport.abort()
    await asyncio.sleep(0)
    assert receiver.losses == 1
    with pytest.raises(SessionClosed):
        await transport.send(TEXT, b"late")
