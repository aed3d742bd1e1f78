"""The relay over real sockets, between peers that can say anything: what arrives, in which order, and how it ends."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from router.events import SessionRecord
from router.relay import relay as relay_module
from tests.helpers.raw import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    SESSION_CREATED,
    TEXT,
    Ended,
    Frame,
    RawPeer,
    RawUpstream,
    close_frame,
    encode,
    fragments,
    on_both_loops,
    raw_client,
    raw_upstream,
)
from tests.helpers.running import RunningRouter, config_of, running_router

MIB = 1024 * 1024
# Between looks at the clock, instead of half a second: tests of time limits need not be slow.
QUICK_SWEEP_S = 0.02


@dataclass(slots=True)
class Session:
    """A client and an upstream, joined by a router."""

    router: RunningRouter
    upstream_server: RawUpstream
    client: RawPeer
    upstream: RawPeer

    async def record(self) -> SessionRecord:
        """The session's record; there must be no second one."""
        await self.router.idle()
        assert len(self.router.records) == 1
        return self.router.records[0]

    def peers(self, side: str) -> tuple[RawPeer, RawPeer]:
        """The peer on a side, and the other one."""
        return (self.client, self.upstream) if side == "client" else (self.upstream, self.client)


@asynccontextmanager
async def joined(*, greeting: bytes | None = None, limit: int = 65536, **settings: Any) -> AsyncIterator[Session]:
    """A session whose client has read the first event.

    Args:
        greeting: frames behind the upstream's 101.
        limit: what the client reads ahead.
        settings: of the router.
    """
    async with raw_upstream(greeting=greeting) as server, running_router(config_of(server.api_base, router=settings)) as router:
        router.engine.sweep._interval_s = QUICK_SWEEP_S
        client = await raw_client(router.port, limit=limit)
        upstream = await server.accept()
        try:
            if greeting is None:
                assert await client.message() == SESSION_CREATED
            yield Session(router, server, client, upstream)
        finally:
            client.abandon()
            upstream.abandon()
            await router.idle()


async def answers_pings(peer: RawPeer) -> None:
    """Do nothing but answer PINGs, until the connection ends."""
    try:
        while True:
            frame = await peer.frame()
            if frame.opcode == PING:
                await peer.send_frame(PONG, frame.payload)
    except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
        return


@asynccontextmanager
async def alive(peer: RawPeer) -> AsyncIterator[None]:
    """A peer that answers PINGs meanwhile."""
    task = asyncio.create_task(answers_pings(peer))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


# --- bytes in, bytes out ------------------------------------------------------------------------


def random_message(rng: random.Random) -> tuple[int, bytes]:
    """A message as providers, SDKs, and neither would send."""
    kind = rng.randrange(8)
    if kind == 0:
        return BINARY, rng.randbytes(rng.choice([0, 1, 125, 126, 127, 3000, 65535, 65536, 70000]))
    filler = "x" * rng.choice([0, 1, 60, 100, 120, 160, 400, 9000, 66000])
    types = ["input_audio_buffer.append", "response.output_audio.delta", "response.done", "x.unknown", "session.updated", "é.è"]
    event: dict[str, Any] = {"type": rng.choice(types)}
    if kind == 1:
        event = {"audio": filler, **event}
    elif kind == 2:
        event = {"event_id": "event_1", **event, "delta": filler}
    elif kind == 3:
        return TEXT, rng.choice([b"", b"{", b"null", b"not json \xff\xfe", filler.encode(), b'{"type":1}'])
    elif kind == 4:
        # A session.update without a model is held, and goes out as it came.
        event = {"type": "session.update", "session": {"instructions": filler}}
    else:
        event["delta"] = filler
    return TEXT, json.dumps(event, indent=rng.choice([None, None, 1])).encode()


def random_frames(rng: random.Random, *, masked: bool) -> tuple[list[bytes], list[bytes]]:
    """Some messages: their data frames, and PINGs and PONGs at any place where they are legal; in the order on the wire."""
    data: list[bytes] = []
    wire: list[bytes] = []
    for _ in range(rng.randint(1, 5)):
        opcode, payload = random_message(rng)
        cuts = [rng.randrange(len(payload) + 1) for _ in range(rng.choice([0, 0, 0, 1, 3]))]
        for frame in fragments(payload, cuts, masked=masked, opcode=opcode):
            if rng.random() < 0.15:
                wire.append(encode(rng.choice([PING, PONG]), rng.randbytes(rng.choice([0, 4, 125])), masked=masked))
            data.append(frame)
            wire.append(frame)
    return data, wire


async def send_in_segments(peer: RawPeer, wire: bytes, rng: random.Random) -> None:
    """Send bytes in pieces that have nothing to do with frames."""
    at = 0
    while at < len(wire):
        size = rng.choice([1, 2, 3, 7, 130, 1500, 20000, 100000])
        await peer.send(wire[at : at + size])
        at += size
        if rng.random() < 0.5:
            await asyncio.sleep(0)


async def receive_like(peer: RawPeer, sent: list[bytes], *, masked: bool) -> list[tuple[int, bool, bytes]]:
    """Receive as many frames as were sent."""
    frames = [await peer.frame() for _ in sent]
    assert all(frame.masked is masked for frame in frames)
    return [(frame.opcode, frame.fin, frame.payload) for frame in frames]


def parsed(frames: list[bytes], *, masked: bool) -> list[tuple[int, bool, bytes]]:
    """Frames as ``receive_like`` gives them."""
    found = []
    for frame in frames:
        size, at = frame[1] & 0x7F, 2
        if size >= 126:
            at = 4 if size == 126 else 10
        key, at = (frame[at : at + 4], at + 4) if masked else (b"\0\0\0\0", at)
        payload = bytes(byte ^ key[index & 3] for index, byte in enumerate(frame[at:])) if masked else frame[at:]
        found.append((frame[0] & 0xF, bool(frame[0] & 0x80), payload))
    return found


def by_kind(frames: list[tuple[int, bool, bytes]]) -> tuple[list[Any], list[Any]]:
    """Data frames, and control frames: the latter may overtake a message that is not complete (RFC 6455 §5.4)."""
    return [item for item in frames if item[0] < 8], [item for item in frames if item[0] >= 8]


@pytest.mark.parametrize("seed", range(10))
@on_both_loops
async def test_random_streams_in_both_directions_arrive_unchanged_and_in_order(seed: int) -> None:
    """Whatever the segments, every frame arrives with its fragmentation and payload, while the other direction does the same."""
    rng = random.Random(seed)
    async with joined() as session:
        for _ in range(12):
            _, up = random_frames(rng, masked=True)
            _, down = random_frames(rng, masked=False)
            got_up, got_down, _, _ = await asyncio.gather(
                receive_like(session.upstream, up, masked=True),
                receive_like(session.client, down, masked=False),
                send_in_segments(session.client, b"".join(up), random.Random(rng.random())),
                send_in_segments(session.upstream, b"".join(down), random.Random(rng.random())),
            )
            assert by_kind(got_up) == by_kind(parsed(up, masked=True))
            assert by_kind(got_down) == by_kind(parsed(down, masked=False))


@on_both_loops
async def test_bytes_that_nobody_asked_to_hold_are_the_very_same() -> None:
    """A client's frames reach the upstream with the client's own mask keys: nothing is encoded anew."""
    wire = b"".join(
        [
            encode(TEXT, b'{"type":"input_audio_buffer.append","audio":"' + b"A" * 500 + b'"}', masked=True, key=b"\1\2\3\4"),
            encode(BINARY, b"\0\1\2", masked=True, key=b"\0\0\0\0"),
            *fragments(b'{"type":"conversation.item.create","x":"' + b"y" * 300 + b'"}', [200, 200, 250], masked=True),
        ]
    )
    async with joined() as session:
        await session.client.send(wire)
        assert await session.upstream.reader.readexactly(len(wire)) == wire
        back = encode(TEXT, b'{"type":"response.done","response":{}}', masked=False) + encode(BINARY, b"", masked=False)
        await session.upstream.send(back)
        assert await session.client.reader.readexactly(len(back)) == back


@on_both_loops
async def test_messages_of_20_mib_pass_both_ways_at_once() -> None:
    """PROTOCOL §1.9: one append may be 20 MiB; the longest message in each direction arrives whole."""
    up = b'{"type":"input_audio_buffer.append","audio":"' + random.Random(1).randbytes(10 * MIB).hex().encode() + b'"}'
    down = b'{"type":"response.output_audio.delta","delta":"' + random.Random(2).randbytes(10 * MIB).hex().encode() + b'"}'
    async with joined(limit=MIB) as session:
        session.upstream.reader._limit = MIB  # type: ignore[attr-defined]
        got_up, got_down, _, _ = await asyncio.gather(
            session.upstream.message(), session.client.message(), session.client.text(up), session.upstream.text(down)
        )
        assert got_up == up
        assert got_down == down
        await session.client.close(1000)
        assert await session.upstream.closed() == (1000, b"")


@on_both_loops
async def test_what_comes_with_the_first_event_is_delivered_in_order() -> None:
    """Events and a PING in the same segment as the ready event: the events reach the client, the PING was answered."""
    events = [SESSION_CREATED, b'{"type":"conversation.created"}', b'{"type":"rate_limits.updated","rate_limits":[]}']
    greeting = b"".join(
        [
            encode(TEXT, events[0], masked=False),
            encode(TEXT, events[1], masked=False),
            encode(PING, b"early", masked=False),
            *fragments(events[2], [5], masked=False),
        ]
    )
    async with joined(greeting=greeting) as session:
        assert [await session.client.message() for _ in events] == events
        assert await session.upstream.frame() == Frame(PONG, True, True, b"early")
        await session.client.text(b"hello")
        assert await session.upstream.message() == b"hello"


@on_both_loops
async def test_half_a_message_with_the_first_event_is_completed_later() -> None:
    """The scanner that followed the upstream before the join goes on with it in mid-frame."""
    event = b'{"type":"response.output_audio.delta","delta":"' + b"A" * 1000 + b'"}'
    frame = encode(TEXT, event, masked=False)
    for cut in (1, 3, 60, 400):
        async with joined(greeting=encode(TEXT, SESSION_CREATED, masked=False) + frame[:cut]) as session:
            assert await session.client.message() == SESSION_CREATED
            await session.upstream.send(frame[cut:])
            assert await session.client.message() == event


@on_both_loops
async def test_a_close_with_the_first_event_is_delivered_after_it() -> None:
    """An upstream that greets and closes in one breath: the client sees both, with the upstream's code."""
    greeting = encode(TEXT, SESSION_CREATED, masked=False) + close_frame(4001, "bye", masked=False)
    async with joined(greeting=greeting) as session:
        assert await session.client.message() == SESSION_CREATED
        assert await session.client.closed() == (4001, b"bye")
        await session.client.close(4001)
        assert await session.upstream.closed() == (4001, b"")
        session.upstream.hang_up()
        record = await session.record()
        assert (record.who, record.cause, record.client_code, record.upstream_code) == ("upstream", "close", 4001, 4001)


@on_both_loops
async def test_unknown_events_pass() -> None:
    """Providers add types; a relay that knew them all would be out of date."""
    async with joined() as session:
        for text in (b'{"type":"response.hologram.delta","x":1}', b'{"type":"ping"}', b"{}", b"[1]", b"text"):
            await session.upstream.text(text)
            assert await session.client.message() == text
            await session.client.text(text)
            assert await session.upstream.message() == text


@pytest.mark.parametrize("ready", ["auto", "handshake"])
@on_both_loops
async def test_an_upstream_that_never_speaks_first_is_ready_by_its_rule(ready: str) -> None:
    """``handshake`` takes the 101, ``auto`` a moment of silence; what the client says then starts the talk."""
    async with raw_upstream(greeting=b"") as server:
        config = config_of(server.api_base, ready=ready, ready_grace_s=0.1)
        async with running_router(config) as router:
            client = await raw_client(router.port)
            upstream = await server.accept()
            await client.text(b"first word")
            assert await upstream.message() == b"first word"
            await upstream.text(b"answer")
            assert await client.message() == b"answer"
            client.abandon()
            upstream.abandon()


# --- session.update -----------------------------------------------------------------------------

UPDATE = {"type": "session.update", "session": {"type": "realtime", "model": "voice", "instructions": "Be brief — ä€\u2028."}}
SPELLINGS: dict[str, bytes] = {
    "type first": json.dumps(UPDATE).encode(),
    "type last": json.dumps({"session": UPDATE["session"], "type": "session.update"}).encode(),
    "type last, compact": json.dumps({"session": UPDATE["session"], "type": "session.update"}, separators=(",", ":")).encode(),
    "event_id first": json.dumps({"event_id": "event_9", **UPDATE}).encode(),
    "type in the middle": json.dumps({"a": 1, **UPDATE, "z": [1, {"type": "x"}]}).encode(),
    "indented": json.dumps(UPDATE, indent=4).encode(),
    "escaped": json.dumps(UPDATE).replace("session.update", "session\\u002eupdate").encode(),
    "big": json.dumps({**UPDATE, "session": {**UPDATE["session"], "instructions": "x" * 200_000}}).encode(),  # type: ignore[dict-item]
    "numbers": b'{"type":"session.update","session":{"model":"voice","a":12345678901234567890123,"b":0.1,"c":-1e-7}}',
}


@pytest.mark.parametrize("spelling", sorted(SPELLINGS))
@on_both_loops
async def test_the_groups_name_in_session_update_becomes_the_deployments_model(spelling: str) -> None:
    """Whatever the order of keys, size or fragments: only the model changes, and what is around it stays byte for byte."""
    text = SPELLINGS[spelling]
    before, after = b'{"type":"input_audio_buffer.append","audio":"AA"}', b'{"type":"response.create"}'
    async with joined() as session:
        for cuts in ([], [1], [10, 100], [len(text) // 2, len(text) - 1]):
            await session.client.text(before)
            for frame in fragments(text, cuts, masked=True):
                await session.client.send(frame)
            await session.client.text(after)
            assert await session.upstream.message() == before
            got = json.loads(await session.upstream.message())
            assert got == {**json.loads(text), "session": {**json.loads(text)["session"], "model": "upstream-model"}}
            assert await session.upstream.message() == after


@pytest.mark.parametrize(
    "text",
    [
        b'{"type":"session.update","session":{"instructions":"no model"}}',
        b'{"type": "session.update",  "session": {"model" :"upstream-model"} }',
        b'{"type":"session.update","session":{"model":null}}',
        b'{"type":"session.update","session":{"audio":{"input":{"transcription":{"model":"whisper"}}}}}',
        b'{"type":"session.update","session":{"model":"voice"',
        b'{"type":"conversation.item.create","item":{"model":"voice","type":"session.update"}}',
        b'{"item":{"model":"voice"},"note":"x","type":"conversation.item.create"}',
        b'{"type":"response.create","response":{"model":"voice"}}',
    ],
)
@on_both_loops
async def test_everything_else_with_a_model_in_it_stays_byte_for_byte(text: bytes) -> None:
    """No other event is touched, nor a session.update that names no model or the right one; not even its spaces."""
    async with joined() as session:
        wire = encode(TEXT, text, masked=True, key=b"\5\6\7\x08")
        await session.client.send(wire)
        assert await session.upstream.reader.readexactly(len(wire)) == wire


@on_both_loops
async def test_a_ping_between_the_fragments_of_a_held_message_does_not_wait_for_it() -> None:
    """RFC 6455 §5.4: a control frame may come inside a fragmented message, and is answered although that is held back."""
    text = SPELLINGS["type first"]
    first, second = fragments(text, [40], masked=True)
    async with joined() as session:
        await session.client.send(first)
        await session.client.send_frame(PING, b"now")
        assert await session.upstream.frame() == Frame(PING, True, True, b"now")
        await session.client.send(second)
        assert json.loads(await session.upstream.message())["session"]["model"] == "upstream-model"


# --- the close handshake ------------------------------------------------------------------------

REASON_123 = ("é" * 61 + "x").encode()
CODES = [(1000, b""), (1000, b"done"), (1001, b""), (3000, b"key"), (4000, b"x.y"), (4999, REASON_123), (1013, b""), (None, b"")]


@pytest.mark.parametrize("side", ["client", "upstream"])
@pytest.mark.parametrize(("code", "reason"), CODES)
@on_both_loops
async def test_codes_and_reasons_pass_in_both_directions(side: str, code: int | None, reason: bytes) -> None:
    """A CLOSE reaches the other side unchanged, its answer comes back unchanged, both connections end, and the record says so."""
    async with joined() as session:
        first, second = session.peers(side)
        await first.close(code, reason)
        assert await second.closed() == (code, reason)
        await second.close(code)
        assert await first.closed() == (code, b"")
        # The router is the client's server and ends that connection; the upstream ends its own (RFC 6455 §7.1.1).
        assert await session.client.gone() == b""
        assert await session.upstream.gone() == b""
        record = await session.record()
        seen = 1005 if code is None else code
        assert (record.who, record.cause, record.phase, record.status) == (side, "close", "idle", 101)
        assert (record.client_code, record.upstream_code) == (seen, seen)
        assert record.upstream_reason == (reason.decode() if side == "upstream" else "")


@pytest.mark.parametrize("side", ["client", "upstream"])
@on_both_loops
async def test_the_record_keeps_the_first_code_of_a_leg(side: str) -> None:
    """A peer may answer a CLOSE with another code; the one that ended the session is what an operator needs."""
    async with joined() as session:
        first, second = session.peers(side)
        await first.close(4321, b"why")
        assert await second.closed() == (4321, b"why")
        await second.close(1000)
        assert await first.closed() == (1000, b"")
        record = await session.record()
        assert (record.client_code, record.upstream_code) == (4321, 4321)


@pytest.mark.parametrize("side", ["client", "upstream"])
@on_both_loops
async def test_nothing_passes_after_a_close(side: str) -> None:
    """RFC 6455 §5.5.1: what a peer sends behind its CLOSE is not relayed."""
    async with joined() as session:
        first, second = session.peers(side)
        await first.send(close_frame(1000, masked=first.masks) + encode(TEXT, b"late", masked=first.masks))
        assert await second.closed() == (1000, b"")
        await second.close(1000)
        assert await first.closed() == (1000, b"")
        assert await second.gone() == b""


@pytest.mark.parametrize("side", ["client", "upstream"])
@on_both_loops
async def test_a_close_that_is_never_answered_is_not_waited_for(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that ignores a CLOSE and stays connected holds nothing: both connections end after the time for an answer."""
    monkeypatch.setattr(relay_module, "CLOSE_TIMEOUT_S", 0.2)
    async with joined() as session:
        first, second = session.peers(side)
        await first.close(1000)
        assert await second.closed() == (1000, b"")
        assert await second.gone() == b""
        # The one that said CLOSE gets its answer from the router then.
        assert await first.closed() == (1000, b"")
        assert await first.gone() == b""
        record = await session.record()
        assert (record.who, record.cause, record.client_code, record.upstream_code) == (side, "close", 1000, 1000)


@pytest.mark.parametrize("side", ["client", "upstream"])
@on_both_loops
async def test_both_sides_may_say_close_at_once(side: str) -> None:
    """Two CLOSE frames that cross are each other's answer."""
    async with joined() as session:
        first, second = session.peers(side)
        first.writer.write(close_frame(4001, masked=first.masks))
        second.writer.write(close_frame(4002, masked=second.masks))
        assert {await first.closed(), await second.closed()} == {(4001, b""), (4002, b"")}
        assert await session.client.gone() == b""
        await session.record()


@pytest.mark.parametrize(("code", "answer"), [(4003, 4003), (None, 1000)])
@on_both_loops
async def test_an_upstream_is_answered_when_the_client_leaves_without_a_word(code: int | None, answer: int) -> None:
    """The upstream closed and the client hung up at once: the upstream is answered with its own code, 1000 for none."""
    async with joined() as session:
        await session.upstream.close(code)
        assert await session.client.closed() == (code, b"")
        session.client.hang_up()
        assert await session.upstream.closed() == (answer, b"")


# --- losses -------------------------------------------------------------------------------------

LOSSES = ["fin", "reset", "half_close"]


def lose(peer: RawPeer, how: str) -> None:
    """End a connection without CLOSE."""
    {"fin": peer.hang_up, "reset": peer.reset, "half_close": peer.half_close}[how]()


@pytest.mark.parametrize("how", LOSSES)
@on_both_loops
async def test_an_upstream_that_is_lost_ends_its_client_with_1011(how: str) -> None:
    """FIN, RST or the end of one direction, no CLOSE: the client is told 1011, which its SDK takes for a reason to reconnect."""
    async with joined() as session:
        lose(session.upstream, how)
        code, reason = await session.client.closed()
        assert (code, reason) == (1011, b"upstream connection lost")
        await session.client.close(1011)
        assert await session.client.gone() == b""
        record = await session.record()
        assert (record.who, record.cause) == ("upstream", "lost")
        assert (record.client_code, record.upstream_code) == (1011, 1006)


@pytest.mark.parametrize("how", LOSSES)
@on_both_loops
async def test_a_client_that_is_lost_ends_its_upstream_with_1001(how: str) -> None:
    """The provider's session is closed at once, and as what it is: the other end went away."""
    async with joined() as session:
        lose(session.client, how)
        assert await session.upstream.closed() == (1001, b"")
        await session.upstream.close(1001)
        session.upstream.hang_up()
        record = await session.record()
        assert (record.who, record.cause) == ("client", "lost")
        assert (record.client_code, record.upstream_code) == (1006, 1001)


@pytest.mark.parametrize("side", ["client", "upstream"])
@pytest.mark.parametrize("how", LOSSES)
@on_both_loops
async def test_a_loss_in_mid_frame_cuts_the_other_side(side: str, how: str) -> None:
    """Half a frame has been passed on: no CLOSE could follow it, and bytes that looked like one would be payload."""
    async with joined() as session:
        first, second = session.peers(side)
        frame = encode(TEXT, b'{"type":"x.y","z":"' + b"z" * 3000 + b'"}', masked=first.masks)
        half = frame[: len(frame) // 2]
        await first.send(half)
        assert await second.reader.readexactly(len(half)) == half
        lose(first, how)
        assert await second.gone() == b""
        second.hang_up()
        record = await session.record()
        assert (record.who, record.cause, record.client_code, record.upstream_code) == (side, "lost", 1006, 1006)


@pytest.mark.parametrize("side", ["client", "upstream"])
@on_both_loops
async def test_a_loss_between_fragments_still_ends_with_a_close(side: str) -> None:
    """A CLOSE may stand between the fragments of a message (RFC 6455 §5.4)."""
    async with joined() as session:
        first, second = session.peers(side)
        start = encode(BINARY, b"half", masked=first.masks, fin=False)
        await first.send(start)
        assert (await second.frame()).payload == b"half"
        first.reset()
        frame = await second.frame()
        assert frame.opcode == CLOSE
        assert frame.close[0] == (1001 if side == "client" else 1011)


# --- pings and time limits ----------------------------------------------------------------------


@on_both_loops
async def test_pings_and_pongs_pass_from_end_to_end_while_nothing_else_moves() -> None:
    """The one who answers is the other end, not the router; payloads are untouched."""
    async with joined() as session:
        for first, second in (session.peers("client"), session.peers("upstream")):
            for payload in (b"", b"a", b"p" * 125):
                await first.send_frame(PING, payload)
                assert await second.frame() == Frame(PING, True, first.masks, payload)
                await second.send_frame(PONG, payload)
                assert await first.frame() == Frame(PONG, True, second.masks, payload)
            # An unsolicited PONG is a one-way heartbeat (RFC 6455 §5.5.3).
            await first.send_frame(PONG, b"beat")
            assert (await second.frame()).payload == b"beat"


@on_both_loops
async def test_the_routers_own_pings_are_not_seen_by_the_other_side() -> None:
    """Both ends are pinged; the answers are swallowed, and pings of the ends still pass."""
    async with joined(ping_interval_s=0.05, ping_timeout_s=30) as session:
        for _ in range(3):
            for peer in (session.client, session.upstream):
                ping = await peer.frame()
                assert ping.opcode == PING
                await peer.send_frame(PONG, ping.payload)
        for first, second in (session.peers("client"), session.peers("upstream")):
            await first.send_frame(PING, b"mine")
            seen = [await second.frame()]
            while seen[-1].payload != b"mine":
                seen.append(await second.frame())
            assert [frame.opcode for frame in seen] == [PING] * len(seen)


@pytest.mark.parametrize("side", ["client", "upstream"])
@on_both_loops
async def test_own_pings_stand_between_frames(side: str) -> None:
    """While a frame is half sent, a ping of the router's own waits for its end; it would be read as payload."""
    async with joined(ping_interval_s=0.05, ping_timeout_s=30) as session:
        first, second = session.peers(side)
        text = b'{"type":"x.y","z":"' + b"z" * 3000 + b'"}'
        frame = encode(TEXT, text, masked=first.masks)
        for at in range(0, len(frame), 400):
            await first.send(frame[at : at + 400])
            # The other direction is free, so a ping there shows that one was due here as well.
            while (await first.frame()).opcode != PING:
                pass
        assert await second.message() == text
        assert (await second.frame()).opcode == PING


@pytest.mark.parametrize("side", ["client", "upstream"])
@on_both_loops
async def test_a_black_hole_is_noticed(side: str) -> None:
    """A peer that answers no ping is dead after ``ping_timeout_s``: it is cut, and the other one told."""
    async with joined(ping_interval_s=0.1, ping_timeout_s=0.8) as session:
        dead, other = session.peers(side)
        ended: Ended | None = None
        async with asyncio.timeout(15):
            while ended is None:
                frame = await other.frame()
                if frame.opcode == PING:
                    await other.send_frame(PONG, frame.payload)
                elif frame.opcode == CLOSE:
                    ended = Ended(*frame.close, True, [])
        assert ended.code == (1001 if side == "client" else 1011)
        other.hang_up()
        record = await session.record()
        assert (record.who, record.cause) == (side, "dead")
        await dead.gone()


@on_both_loops
async def test_peers_that_answer_pings_are_not_dead() -> None:
    """The control run of the black hole: silence but for PONGs outlives the time-out several times."""
    async with joined(ping_interval_s=0.05, ping_timeout_s=0.8) as session:
        (relay,) = session.router.engine.relays.values()
        async with alive(session.client), alive(session.upstream):
            before = relay.summary().seconds
            await session.router.until_true(lambda: relay.summary().seconds - before > 2.0)
        assert not session.router.records


@pytest.mark.parametrize(
    ("settings", "cause", "code"),
    [({"idle_timeout_s": 0.3}, "idle_timeout", "idle_timeout"), ({"max_session_s": 0.3}, "max_session", "session_expired")],
)
@on_both_loops
async def test_time_limits_end_politely(settings: dict[str, Any], cause: str, code: str) -> None:
    """The client gets an ``error`` event and then 1001, the upstream 1001."""
    async with joined(**settings) as session:
        event = json.loads(await session.client.message())
        assert (event["type"], event["error"]["code"]) == ("error", code)
        assert event["event_id"]
        assert (await session.client.closed())[0] == 1001
        assert await session.upstream.closed() == (1001, b"")
        await session.client.close(1001)
        assert await session.client.gone() == b""
        session.upstream.hang_up()
        record = await session.record()
        assert (record.who, record.cause, record.client_code, record.upstream_code) == ("router", cause, 1001, 1001)


@on_both_loops
async def test_events_keep_an_idle_session_open() -> None:
    """``idle_timeout_s`` counts events of either side; pings are none."""
    async with joined(idle_timeout_s=0.8) as session:
        (relay,) = session.router.engine.relays.values()
        while relay.summary().seconds < 1.8:
            await session.client.text(b'{"type":"input_audio_buffer.append"}')
            await session.upstream.message()
            await session.upstream.text(b'{"type":"ping"}')
            await session.client.message()
            await asyncio.sleep(0.02)
        assert json.loads(await session.client.message())["error"]["code"] == "idle_timeout"


@on_both_loops
async def test_an_error_event_waits_for_the_end_of_the_upstreams_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event of the router's own cannot stand inside a fragmented message of the upstream's."""
    monkeypatch.setattr(relay_module, "BOUNDARY_TIMEOUT_S", 15)
    monkeypatch.setattr(relay_module, "CLOSE_TIMEOUT_S", 15)
    async with joined(max_session_s=0.2) as session:
        await session.upstream.send(encode(TEXT, b'{"type":"x.y",' + b" " * 200, masked=False, fin=False))
        assert await session.upstream.closed() == (1001, b"")
        await session.upstream.send(encode(CONTINUATION, b'"z":1}', masked=False))
        assert json.loads(await session.client.message())["type"] == "x.y"
        assert json.loads(await session.client.message())["error"]["code"] == "session_expired"
        assert (await session.client.closed())[0] == 1001
        session.client.hang_up()
        session.upstream.hang_up()


@on_both_loops
async def test_an_upstream_that_never_ends_its_message_does_not_keep_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no boundary comes, the client is cut after a while instead of being kept until for ever."""
    monkeypatch.setattr(relay_module, "BOUNDARY_TIMEOUT_S", 0.2)
    async with joined(max_session_s=0.2) as session:
        half = encode(TEXT, b'{"type":"x.y","z":"' + b"z" * 3000 + b'"}', masked=False)[:-10]
        await session.upstream.send(half)
        ended = await session.client.gone()
        assert ended == half
        session.upstream.hang_up()
        record = await session.record()
        assert (record.who, record.cause, record.client_code) == ("router", "max_session", 1006)


@on_both_loops
async def test_the_end_of_the_process_is_said_to_everybody() -> None:
    """What SIGTERM does: every client gets an ``error`` event and 1001, every upstream 1001, and ``end_all`` waits for them."""
    async with raw_upstream() as server, running_router(config_of(server.api_base)) as router:
        pairs = []
        for _ in range(5):
            client = await raw_client(router.port)
            upstream = await server.accept()
            assert await client.message() == SESSION_CREATED
            pairs.append((client, upstream))
        ending = asyncio.create_task(router.engine.end_all(code=1001, reason="router shutting down", timeout_s=10))
        for client, upstream in pairs:
            assert json.loads(await client.message())["error"]["code"] == "router_shutting_down"
            assert await client.closed() == (1001, b"router shutting down")
            assert await upstream.closed() == (1001, b"")
            await client.close(1001)
            client.hang_up()
            upstream.hang_up()
        await ending
        assert [record.cause for record in router.records] == ["shutdown"] * 5
        assert {record.who for record in router.records} == {"router"}


# --- illegal bytes ------------------------------------------------------------------------------


def illegal(masked: bool) -> dict[str, tuple[bytes, int]]:
    """Bytes that break RFC 6455, and the code that it asks for."""

    def frame(opcode: int, payload: bytes = b"", **odd: Any) -> bytes:
        return encode(opcode, payload, **{"masked": masked, **odd})

    return {
        "reserved bit 1": (frame(TEXT, b"x", rsv=4), 1002),
        "reserved bit 3": (frame(TEXT, b"x", rsv=1), 1002),
        "opcode 3": (frame(3, b"x"), 1002),
        "opcode 7": (frame(7, b"x"), 1002),
        "opcode 11": (frame(11, b"x"), 1002),
        "mask": (frame(TEXT, b"x", masked=not masked), 1002),
        "fragmented ping": (frame(PING, b"x", fin=False), 1002),
        "long ping": (frame(PING, b"x" * 126), 1002),
        "continuation of nothing": (frame(CONTINUATION, b"x"), 1002),
        "message in a message": (frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), 1002),
        "16 bits for 5": (frame(TEXT, b"12345", form=16), 1002),
        "64 bits for 500": (frame(TEXT, b"x" * 500, form=64), 1002),
        "length 2^63": (frame(TEXT, length=1 << 63), 1002),
        "length 2^62": (frame(TEXT, length=1 << 62), 1009),
        "too big": (frame(BINARY, length=20_001), 1009),
        "too big in fragments": (frame(BINARY, b"x" * 15_000, fin=False) + frame(CONTINUATION, b"x" * 5_001), 1009),
        "close of one byte": (frame(CLOSE, b"\x03"), 1002),
        "close 999": (close_frame(999, masked=masked), 1002),
        "close 1005": (close_frame(1005, masked=masked), 1002),
        "close 1006": (close_frame(1006, masked=masked), 1002),
        "close 1015": (close_frame(1015, masked=masked), 1002),
        "close 5000": (close_frame(5000, masked=masked), 1002),
        "close reason": (close_frame(1000, b"\xff\xfe", masked=masked), 1007),
        "http": (b"GET / HTTP/1.1\r\n\r\n", 1002),
    }


@pytest.mark.parametrize("side", ["client", "upstream"])
@pytest.mark.parametrize("what", sorted(illegal(True)))
@on_both_loops
async def test_an_offender_gets_the_code_of_the_rfc_and_the_other_side_an_end(side: str, what: str) -> None:
    """What was legal before the offence is delivered, nothing after it; both ends learn why by a code of their own."""
    async with joined(max_message_bytes=20_000) as session:
        offender, other = session.peers(side)
        data, code = illegal(offender.masks)[what]
        good = encode(TEXT, b"good", masked=offender.masks)
        await offender.send(good + data + encode(TEXT, b"late", masked=offender.masks))
        seen, told = await asyncio.gather(_up_to_close(other), _up_to_close(offender))
        assert seen[0][:1] == [b"good"]
        assert b"late" not in seen[0]
        assert seen[1] == (1001 if side == "client" else 1011)
        assert told == ([], code)
        for peer in (offender, other):
            peer.hang_up()
        record = await session.record()
        assert (record.who, record.cause) == (side, "protocol")
        codes = (code, 1001) if side == "client" else (1011, code)
        assert (record.client_code, record.upstream_code) == codes


async def _up_to_close(peer: RawPeer) -> tuple[list[bytes], int | None]:
    payloads: list[bytes] = []
    while True:
        frame = await peer.data_frame()
        if frame.opcode == CLOSE:
            return payloads, frame.close[0]
        payloads.append(frame.payload)


@on_both_loops
async def test_endless_fragments_without_payload_are_not_held_for_ever() -> None:
    """A message that waits for its type is held; the heads of its fragments alone were held without end, at 47 bytes each."""
    async with joined() as session:
        (relay,) = session.router.engine.relays.values()
        scanner = relay._up.scanner
        await session.client.send(encode(TEXT, b'{"type":', masked=True, fin=False))
        flood = encode(CONTINUATION, b"", masked=True, fin=False) * 10_000

        async def drain() -> int:
            size = 0
            while size < 2 * MIB:
                size += len(await session.upstream.reader.read(MIB))
                assert scanner.held_bytes < 2 * MIB
            return size

        draining = asyncio.create_task(drain())
        for _ in range(60):
            await session.client.send(flood)
            assert scanner.held_bytes < 2 * MIB
        async with asyncio.timeout(15):
            assert await draining >= 2 * MIB
