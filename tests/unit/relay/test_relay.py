"""Two legs joined, between transports that do exactly what a test says, at a time that it says.

What needs no exact call is in ``tests/integration/test_relay.py``, over real sockets.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from router.relay import relay as relay_module
from router.relay.contract import Seen, error_event
from router.relay.frames import BINARY, CLOSE, PING, PONG, TEXT, encode_frame
from router.relay.leg import Leg
from router.relay.relay import type_by_parsing
from tests.unit.relay.fakes import Bench, FakeTransport

KEY = b"\1\2\3\4"
CREATED = encode_frame(TEXT, b'{"type":"session.created"}')


def from_client(opcode: int, payload: bytes) -> bytes:
    """A frame as a client sends it."""
    return encode_frame(opcode, payload, mask_key=KEY)


def close_of(frame: bytes) -> tuple[int, bytes]:
    """Code and reason of an unmasked CLOSE."""
    assert frame[0] == 0x80 | CLOSE, frame
    return struct.unpack(">H", frame[2:4])[0], frame[4:]


def unmasked(frame: bytes) -> bytes:
    """A short masked frame without its mask."""
    key, payload = frame[2:6], frame[6:]
    return bytes([frame[0], frame[1] & 0x7F]) + bytes(byte ^ key[index & 3] for index, byte in enumerate(payload))


# --- the join -----------------------------------------------------------------------------------


async def test_the_join_delivers_what_came_before_it() -> None:
    """The backlog first, then the early bytes of the client; the taps hear of both, and reading begins."""
    upstream = FakeTransport(masks=True)
    upstream.leg.pause_reading()
    early = from_client(TEXT, b'{"type":"response.create"}')
    seen = [Seen(opcode=TEXT, event_type="session.created", size=26, payload=None)]
    bench = Bench(backlog=[CREATED], seen=seen, early=early, upstream=upstream)
    await bench.begin()
    assert bench.client.take() == CREATED
    assert bench.upstream.take() == early
    assert bench.upstream.reading
    assert bench.accounting.take_counts() == {("upstream", "session.created"): (1, 26), ("client", "response.create"): (1, 26)}
    await bench.finish()


async def test_a_client_that_is_full_already_keeps_the_upstream_paused() -> None:
    """A backlog longer than the client takes: the upstream is read when there is room, not before."""
    upstream = FakeTransport(masks=True)
    upstream.leg.pause_reading()
    client = FakeTransport()
    client.leg.pause_writing()
    bench = Bench(backlog=[CREATED], client=client, upstream=upstream)
    await bench.begin()
    assert not bench.upstream.reading
    client.leg.resume_writing()
    assert bench.upstream.reading
    await bench.finish()


@pytest.mark.parametrize("who", ["client", "upstream", "both"])
async def test_a_leg_that_was_lost_while_nobody_listened_ends_the_session(who: str) -> None:
    """Its loss was told to nobody; the join looks for itself."""
    client, upstream = FakeTransport(), FakeTransport(masks=True)
    if who != "client":
        upstream.lose()
    if who != "upstream":
        client.lose()
    bench = Bench(backlog=[CREATED], client=client, upstream=upstream)
    await bench.begin()
    if who == "client":
        assert unmasked(bench.upstream.take()) == encode_frame(CLOSE, b"\x03\xe9")
    elif who == "upstream":
        assert close_of(bench.client.take()[len(CREATED) :])[0] == 1011
    await bench.finish()
    end = bench.running.result()
    assert (end.who, end.cause) == ("client" if who == "client" else "upstream", "lost")


async def test_a_cancelled_session_cuts_both_connections_and_says_who_did_it() -> None:
    """The process gives up: no lease, timer or connection waits for a peer."""
    bench = Bench()
    await bench.begin()
    assert len(bench.sweep) == 1
    bench.running.cancel()
    await asyncio.wait([bench.running])
    assert bench.client.aborted
    assert bench.upstream.aborted
    assert len(bench.sweep) == 0
    end = bench.relay.summary()
    assert (end.who, end.cause, end.client_code, end.upstream_code) == ("router", "cancelled", 1006, 1006)
    bench.client.lose()
    bench.upstream.lose()


# --- back-pressure ------------------------------------------------------------------------------


@pytest.mark.parametrize("full", ["client", "upstream"])
async def test_a_full_leg_pauses_the_reading_of_the_other_one_only(full: str) -> None:
    """The way back stays open."""
    bench = Bench()
    await bench.begin()
    reader, writer = (bench.client, bench.upstream) if full == "client" else (bench.upstream, bench.client)
    reader.leg.pause_writing()
    assert (writer.reading, reader.reading) == (False, True)
    reader.leg.resume_writing()
    assert writer.reading
    await bench.finish()


@pytest.mark.parametrize("full", ["client", "upstream"])
async def test_when_a_leg_is_lost_the_other_one_is_read_again(full: str) -> None:
    """It was paused for the sake of the one that is gone; without reading, its answer and its end would not be seen."""
    for stalls in (False, True):
        bench = Bench(stall_timeout_s=30)
        await bench.begin()
        lost, other = (bench.client, bench.upstream) if full == "client" else (bench.upstream, bench.client)
        lost.leg.pause_writing()
        assert not other.reading
        if stalls:
            bench.pass_time(31)
            assert lost.aborted
        lost.lose(ConnectionResetError())
        assert other.reading
        await bench.finish()


# --- the clock ----------------------------------------------------------------------------------


async def test_pings_go_to_both_sides_and_their_answers_are_swallowed() -> None:
    """One each ``ping_interval_s``, masked towards the upstream; only a PONG with that payload is kept back."""
    bench = Bench(ping_interval_s=20, ping_timeout_s=1000)
    await bench.begin()
    bench.pass_time(19)
    assert bench.client.take() == bench.upstream.take() == b""
    bench.pass_time(2)
    ping = bench.client.take()
    assert ping[0] == 0x80 | PING
    assert unmasked(bench.upstream.take()) == ping
    payload = ping[2:]
    bench.client.leg.data_received(from_client(PONG, payload) + from_client(PONG, b"own"))
    assert unmasked(bench.upstream.take()) == encode_frame(PONG, b"own")
    bench.upstream.leg.data_received(encode_frame(PONG, payload) + encode_frame(PING, payload))
    assert bench.client.take() == encode_frame(PING, payload)
    bench.pass_time(19)
    assert bench.client.take() == b""
    await bench.finish()


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_silence_for_the_time_out_is_death(side: str) -> None:
    """Any byte counts as life, half a frame too; the dead one is cut, the other one is told."""
    bench = Bench(ping_interval_s=1000, ping_timeout_s=45)
    await bench.begin()
    dead, other = (bench.client, bench.upstream) if side == "client" else (bench.upstream, bench.client)
    for _ in range(5):
        bench.pass_time(40)
        for transport, masked in ((bench.client, True), (bench.upstream, False)):
            frame = from_client(BINARY, b"x") if masked else encode_frame(BINARY, b"x")
            transport.leg.data_received(frame)
    bench.client.take()
    bench.upstream.take()
    bench.pass_time(40)
    other.leg.data_received(from_client(BINARY, b"x") if side == "upstream" else encode_frame(BINARY, b"x"))
    bench.pass_time(6)
    assert dead.aborted
    told = other.take()
    assert close_of(told if side == "upstream" else unmasked(told))[0] == (1011 if side == "upstream" else 1001)
    dead.lose()
    other.lose()
    end = await bench.running
    assert (end.who, end.cause) == (side, "dead")


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_a_leg_whose_reading_is_paused_is_not_taken_for_dead(side: str) -> None:
    """Its silence is the router's own doing (DESIGN §6): its clock starts when it is read again."""
    bench = Bench(ping_interval_s=1000, ping_timeout_s=45, stall_timeout_s=1e6)
    await bench.begin()
    paused, full = (bench.client, bench.upstream) if side == "client" else (bench.upstream, bench.client)
    full.leg.pause_writing()
    for _ in range(10):
        bench.pass_time(40)
        full.leg.data_received(from_client(BINARY, b"x") if side == "upstream" else encode_frame(BINARY, b"x"))
    assert not bench.client.aborted
    assert not bench.upstream.aborted
    full.leg.resume_writing()
    bench.pass_time(40)
    full.leg.data_received(from_client(BINARY, b"x") if side == "upstream" else encode_frame(BINARY, b"x"))
    assert not paused.aborted
    bench.pass_time(6)
    assert paused.aborted
    await bench.finish()


async def test_a_reader_that_takes_nothing_is_stalled_after_its_time() -> None:
    """Only while the buffer is above its mark, and only when nothing at all was taken."""
    bench = Bench(ping_interval_s=1e6, ping_timeout_s=2e6, stall_timeout_s=30)
    await bench.begin()
    bench.pass_time(100)
    bench.client.kept = 100_000
    bench.client.leg.pause_writing()
    bench.pass_time(0)
    bench.pass_time(29)
    assert not bench.client.aborted
    bench.pass_time(2)
    assert bench.client.aborted
    assert unmasked(bench.upstream.take()) == encode_frame(CLOSE, b"\x03\xe9")
    await bench.finish()
    end = bench.running.result()
    assert (end.who, end.cause) == ("client", "stalled")


async def test_a_buffer_that_is_as_full_as_before_may_have_been_emptied_meanwhile() -> None:
    """Its size alone was compared: a reader whose buffer was filled again between two looks counted as one that takes nothing."""
    bench = Bench(ping_interval_s=1e6, ping_timeout_s=2e6, stall_timeout_s=30)
    await bench.begin()
    bench.client.kept = 100_000
    bench.client.leg.pause_writing()
    for _ in range(10):
        bench.pass_time(20)
        # The client took all of it, and as much came again: nothing is written while the buffer is over its mark.
        bench.client.leg.resume_writing()
        bench.client.leg.pause_writing()
    assert not bench.client.aborted
    # A little is taken now and then, and the router's own pings come on top.
    for _ in range(3):
        bench.pass_time(20)
        bench.client.kept -= 1
        bench.pass_time(1)
        bench.client.kept += 8
    assert not bench.client.aborted
    bench.pass_time(31)
    bench.pass_time(31)
    assert bench.client.aborted
    await bench.finish()


@pytest.mark.parametrize(
    ("limits", "cause", "code"),
    [({"idle_timeout_s": 60.0}, "idle_timeout", "idle_timeout"), ({"max_session_s": 60.0}, "max_session", "session_expired")],
)
async def test_time_limits_say_why_before_they_close(limits: dict[str, Any], cause: str, code: str) -> None:
    """An ``error`` event in OpenAI's form, then CLOSE 1001 in the same write; nothing of what comes later follows."""
    bench = Bench(ping_interval_s=1e6, ping_timeout_s=2e6, **limits)
    await bench.begin()
    bench.pass_time(59)
    assert bench.client.take() == b""
    bench.pass_time(1)
    said = bench.client.take()
    assert said[:2] == bytes([0x80 | TEXT, 126])
    size = struct.unpack(">H", said[2:4])[0]
    event = orjson.loads(said[4 : 4 + size])
    assert (event["type"], event["error"]["code"], event["error"]["param"]) == ("error", code, None)
    assert close_of(said[4 + size :])[0] == 1001
    assert unmasked(bench.upstream.take()) == encode_frame(CLOSE, b"\x03\xe9")
    bench.upstream.leg.data_received(encode_frame(TEXT, b"late"))
    bench.client.leg.data_received(from_client(TEXT, b"late"))
    assert bench.client.take() == bench.upstream.take() == b""
    await bench.finish()
    end = bench.running.result()
    assert (end.who, end.cause, end.client_code, end.upstream_code, end.seconds) == ("router", cause, 1001, 1001, 60)


async def test_events_of_either_side_put_off_the_idle_time_out_and_pings_do_not() -> None:
    """A session with nothing but heartbeats is idle."""
    bench = Bench(ping_interval_s=1e6, ping_timeout_s=2e6, idle_timeout_s=60)
    await bench.begin()
    for frame, transport in ((encode_frame(TEXT, b"{}"), bench.upstream), (from_client(BINARY, b"x"), bench.client)) * 3:
        bench.pass_time(50)
        transport.leg.data_received(frame)
    bench.pass_time(50)
    bench.upstream.leg.data_received(encode_frame(PING, b""))
    assert bench.relay._ended is None
    bench.pass_time(50)
    assert bench.relay._ended == ("router", "idle_timeout", "idle")
    await bench.finish()


# --- endings ------------------------------------------------------------------------------------


async def test_only_the_first_end_counts() -> None:
    """What happens while a session ends does not change who ended it, and is not said a second time."""
    bench = Bench()
    await bench.begin()
    bench.relay.end(cause="shutdown", code=1001, reason="bye")
    assert close_of(bench.client.take()) == (1001, b"bye")
    bench.relay.end(cause="max_session", code=1011, reason="again")
    bench.pass_time(1e6)
    bench.upstream.lose(ConnectionResetError())
    assert bench.client.take() == b""
    bench.client.lose()
    end = await bench.running
    assert (end.who, end.cause, end.client_code) == ("router", "shutdown", 1001)


async def test_a_close_of_the_routers_own_that_a_provider_overtakes_is_not_in_the_record() -> None:
    """It waited for the end of a message; the provider's own CLOSE came first, in that message, and is what the client saw."""
    bench = Bench()
    await bench.begin()
    start = bytearray(encode_frame(TEXT, b'{"type":"x.y"' + b" " * 200))
    start[0] &= 0x7F
    bench.upstream.leg.data_received(bytes(start))
    bench.relay.end(cause="max_session", code=1001, reason="", error_event=error_event("session_expired", "x"))
    bench.upstream.leg.data_received(encode_frame(CLOSE, b"\x0f\xa1"))
    assert bench.client.take() == bytes(start) + encode_frame(CLOSE, b"\x0f\xa1")
    await bench.finish()
    end = bench.running.result()
    # The upstream was told 1001 before it said 4001.
    assert (end.cause, end.client_code, end.upstream_code) == ("max_session", 4001, 1001)


async def test_the_peers_get_their_time_and_not_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """After ``CLOSE_TIMEOUT_S`` both connections are cut, whatever is still unsent."""
    monkeypatch.setattr(relay_module, "CLOSE_TIMEOUT_S", 0.01)
    bench = Bench()
    await bench.begin()
    bench.upstream.leg.data_received(encode_frame(CLOSE, b"\x03\xe8"))
    assert not bench.client.aborted
    async with asyncio.timeout(5):
        await asyncio.gather(bench.client.cut.wait(), bench.upstream.cut.wait())
    await bench.finish()


async def test_an_end_leaves_no_timer_behind() -> None:
    """What waits for the answer to a CLOSE is taken back when the connections are gone."""
    bench = Bench()
    await bench.begin()
    bench.upstream.leg.data_received(encode_frame(CLOSE, b"\x03\xe8"))
    await bench.finish()
    assert bench.relay._timer is not None
    assert bench.relay._timer.cancelled()


@pytest.mark.parametrize("step", range(6))
async def test_bytes_that_come_after_the_end_change_nothing(step: int) -> None:
    """Late data, watermarks and losses in any order after both legs are released: no exception, no write."""
    bench = Bench()
    await bench.begin()
    await bench.finish()
    bench.client.take()
    bench.upstream.take()
    legs: list[Leg] = [bench.client.leg, bench.upstream.leg]
    acts: list[Callable[[Leg], object]] = [
        lambda leg: leg.data_received(encode_frame(TEXT, b"x")),
        Leg.pause_writing,
        Leg.resume_writing,
        lambda leg: leg.write(b"x"),
        Leg.release,
        lambda leg: bench.relay.tick(1e9),
    ]
    for leg in legs:
        for act in acts[step:] + acts[:step]:
            act(leg)
    assert bench.client.take() == bench.upstream.take() == b""


def test_a_type_in_an_unusual_place_is_found() -> None:
    """Only a string at the top of an object names an event; nothing raises."""
    assert type_by_parsing(b'{"a":{"type":"no"},"type":"yes","b":1}') == "yes"
    for text in (b"", b"{", b"[]", b'"type"', b'{"type":1}', b"\xff", b"[" * 5000):
        assert type_by_parsing(text) is None


def test_an_error_event_is_an_openai_one() -> None:
    """Every field that the SDKs' types demand; ids differ."""
    first, second = (orjson.loads(error_event("c", "m")) for _ in range(2))
    assert first["error"] == {"type": "server_error", "code": "c", "message": "m", "param": None, "event_id": None}
    assert first["event_id"] != second["event_id"]
