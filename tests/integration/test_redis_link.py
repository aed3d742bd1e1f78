"""The exchange through real servers: the same answers as ``Board``, and no surprise whatever becomes of the server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from router.config.settings import FleetSettings, Secret
from router.fleet import redis_client, redis_link
from router.fleet.board import CLOCK_SLACK_S, PLACE_TTL_S, SHARE_TTL_S, Board
from router.fleet.exchange import Exchange, ExchangeError, Wanted
from router.fleet.picture import MOST, Vector
from router.fleet.redis_link import CALL_TIMEOUT_S, CONNECT_TIMEOUT_S, MOST_LINKS, RedisExchange
from router.fleet.scripts import ACQUIRE, BEAT, MOST_SHARE_BYTES
from tests.helpers.parts import require
from tests.helpers.ports import free_port
from tests.helpers.processes import environment
from tests.helpers.redis_servers import (
    GARBAGE,
    MASTER,
    RedisServer,
    ServerSaid,
    acl_user,
    cluster,
    flood_server,
    garbage_server,
    proxy,
    redis_server,
    until,
    watched_servers,
)
from tests.helpers.tls import Authority, on_router_loops

PREFIX = "{realtime-router}:1"
MEMBERS, SHARES = f"{PREFIX}:members", f"{PREFIX}:shares"


Kind = Literal["single", "sentinel", "cluster"]


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not about time must not fail because a busy machine lets a server wait."""
    monkeypatch.setattr(redis_link, "CALL_TIMEOUT_S", 10.0)


@pytest.fixture
def hurried(unhurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that calls have in earnest."""
    monkeypatch.setattr(redis_link, "CALL_TIMEOUT_S", CALL_TIMEOUT_S)


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A server of one kind, where what is tested is this side of the wire."""
    async with redis_server(require("redis-7.0"), tmp_path) as running:
        yield running


@asynccontextmanager
async def exchanges(settings: FleetSettings, *members: str) -> AsyncIterator[list[RedisExchange]]:
    """Exchanges of several members, closed at the end."""
    made = [RedisExchange(settings, member=member) for member in members]
    try:
        yield made
    finally:
        for exchange in made:
            await exchange.close()


def joined(server: RedisServer, member: str = "a", **more: Any) -> AbstractAsyncContextManager[list[RedisExchange]]:
    """One member's exchange, in a list."""
    return exchanges(server.settings(**more), member)


def wanted(deployment: str, place: str, limit: int = 1) -> Wanted:
    """A place on a deployment."""
    return Wanted(deployment=deployment, limit=limit, place=place)


async def fails(call: Callable[[], Coroutine[Any, Any, Any]]) -> str:
    """Make a call that must fail, in about the time that it may take, and return what it says.

    On a machine that is busy a wait of that time takes longer as well: that is the control.
    """
    start = time.perf_counter()
    with pytest.raises(ExchangeError) as caught:
        await call()
    took_s = time.perf_counter() - start
    if took_s > CONNECT_TIMEOUT_S + CALL_TIMEOUT_S:
        start = time.perf_counter()
        await asyncio.sleep(CONNECT_TIMEOUT_S + CALL_TIMEOUT_S)
        assert took_s < 3 * (time.perf_counter() - start)
    said = str(caught.value)
    assert said and said.isprintable() and len(said) < 2000
    return said


async def all_fail(exchange: Exchange) -> set[str]:
    """Make every call, each of which must fail."""
    return {
        await fails(lambda: exchange.beat({"d:x": (1,)}, {})),
        await fails(lambda: exchange.acquire([wanted("x", "p")])),
        await fails(lambda: exchange.release({"x": ["p"]})),
        await fails(exchange.leave),
    }


async def recovers(exchange: Exchange) -> None:
    """The next call works, and so does every other."""
    assert (await exchange.beat({"d:x": (1,)}, {})).members == 0
    assert list(await exchange.acquire([wanted("recovery", "p")])) == [True]
    await exchange.release({"recovery": ["p"]})


# --- what it answers -----------------------------------------------------------------------------


def a_share(rng: random.Random) -> dict[str, Vector]:
    """A share whose sums are exact in any order: whole eighths."""
    names = ["d:one", "d:two", "d:Zwei/drei ü", 'd:"quoted"\\', "k:someone", "d:" + "x" * 500]
    return {
        name: tuple(rng.choice([0, rng.randint(0, 2**40), rng.randint(0, 2**20) / 8]) for _ in range(rng.randint(0, 12)))
        for name in rng.sample(names, rng.randint(0, len(names)))
    }


@pytest.mark.parametrize("seed", [1, 2])
async def test_it_answers_as_the_board_does(server: RedisServer, seed: int) -> None:
    """A random script of several members: every answer is that of the board which is told the same."""
    rng = random.Random(seed)
    board = Board()
    names = ["a", "b", "c", "d"]
    async with exchanges(server.settings(), *names) as members, server.client() as clock:
        for _ in range(250):
            index = rng.randrange(len(members))
            seconds, micros = await clock.call("TIME")
            now_s = int(seconds) + int(micros) / 1e6
            places = {
                deployment: [f"{rng.choice(names)}{rng.randrange(9)}" for _ in range(rng.randint(0, 4))]
                for deployment in rng.sample(["x", "y", "z"], rng.randint(0, 3))
            }
            match rng.choice(["beat", "beat", "acquire", "acquire", "release", "leave"]):
                case "beat":
                    share = a_share(rng)
                    heard = await members[index].beat(share, places)
                    expected = board.beat(names[index], share, places, now_s=now_s)
                    told = (heard.known, heard.members, dict(heard.totals))
                    assert told == (expected.known, expected.members, dict(expected.totals))
                    assert now_s <= heard.now_s + 0.001
                case "acquire":
                    batch = [wanted(id, place, rng.randint(0, 6)) for id, listed in places.items() for place in listed]
                    rng.shuffle(batch)
                    if not batch:
                        continue
                    try:
                        granted = board.acquire(batch, now_s=now_s, member=names[index])
                    except ExchangeError as error:
                        assert await fails(partial(members[index].acquire, batch)) == str(error)
                    else:
                        assert list(await members[index].acquire(batch)) == list(granted)
                case "release":
                    await members[index].release(places)
                    board.release(places)
                case "leave":
                    await members[index].leave()
                    board.remove(names[index])


async def test_what_has_ended_is_taken_away(server: RedisServer) -> None:
    """A share whose time is up, one that ends later than any can (the clock went back), and one that nobody stands for."""
    async with joined(server) as (exchange,):
        now_s = (await exchange.beat({}, {})).now_s
        slack_s = SHARE_TTL_S + CLOCK_SLACK_S
        for member, ends_s in {"gone": now_s - 1, "jumped": now_s + slack_s + 60, "lives": now_s + slack_s - 0.5}.items():
            await server.cli("ZADD", MEMBERS, round(ends_s * 1000), member)
            await server.cli("HSET", SHARES, member, json.dumps({f"d:{member}": [0, 1]}))
        await server.cli("HSET", SHARES, "orphan", '{"d:orphan":[0,1]}')
        heard = await exchange.beat({"d:own": (0, 5)}, {})
        assert (heard.members, dict(heard.totals)) == (1, {"d:lives": (0, 1)})
        assert set(await server.cli("ZRANGE", MEMBERS, 0, -1)) == {"a", "lives"}
        assert set(await server.cli("HKEYS", SHARES)) == {"a", "lives"}


async def test_own_entry_of_another_time_is_put_right(server: RedisServer) -> None:
    """After a jump of the clock a member enters itself again, and the others hear it."""
    async with exchanges(server.settings(), "a", "b") as (first, second):
        now_s = (await first.beat({"d:x": (0, 1)}, {})).now_s
        await server.cli("ZADD", MEMBERS, round((now_s + 3600) * 1000), "a")
        assert (await second.beat({}, {})).members == 0
        assert not (await first.beat({"d:x": (0, 1)}, {})).known
        assert dict((await second.beat({}, {})).totals) == {"d:x": (0, 1)}


async def test_a_place_that_has_ended_is_free(server: RedisServer) -> None:
    """Full by places of the past and of an impossible future: there is room, and what is held by the living stays."""
    async with joined(server) as (exchange,):
        now_s = (await exchange.beat({}, {})).now_s
        slack_s = PLACE_TTL_S + CLOCK_SLACK_S
        ends = {"past": now_s - 0.5, "future": now_s + slack_s + 60, "held": now_s + slack_s - 1}
        for place, ends_s in ends.items():
            await server.cli("ZADD", f"{PREFIX}:places:x", round(ends_s * 1000), place)
        asked = [wanted("x", "one", 2), wanted("x", "two", 2), wanted("x", "held", 2), wanted("x", "one", 2)]
        assert list(await exchange.acquire(asked)) == [True, False, True, True]
        assert set(await server.cli("ZRANGE", f"{PREFIX}:places:x", 0, -1)) == {"one", "held"}


async def test_who_has_no_entry_is_told_so(server: RedisServer) -> None:
    """At the start, after the server lost everything, and after its entry ended: no place is granted until the next beat."""
    async with joined(server) as (exchange,):
        assert "no entry" in await fails(lambda: exchange.acquire([wanted("x", "p")]))
        assert not (await exchange.beat({}, {})).known
        assert (await exchange.beat({}, {})).known
        await server.cli("FLUSHALL")
        assert "no entry" in await fails(lambda: exchange.acquire([wanted("x", "p"), wanted("y", "p")]))
        assert await server.ttls() == {}
        now_s = (await exchange.beat({}, {})).now_s
        assert list(await exchange.acquire([wanted("x", "p")])) == [True]
        await server.cli("ZADD", MEMBERS, round((now_s - 1) * 1000), "a")
        assert "no entry" in await fails(lambda: exchange.acquire([wanted("x", "q", 9)]))
        assert await server.cli("ZCARD", f"{PREFIX}:places:x") == 1
        assert not (await exchange.beat({}, {})).known


async def test_a_renewed_place_lives_longer(server: RedisServer) -> None:
    """The beat enters places again, those that the server forgot included, whatever the limit was."""
    async with joined(server) as (exchange,):
        now_s = (await exchange.beat({}, {})).now_s
        assert list(await exchange.acquire([wanted("x", "one")])) == [True]
        await server.cli("ZADD", f"{PREFIX}:places:x", round((now_s + 0.5) * 1000), "one")
        heard = await exchange.beat({}, {"x": ["one", "forgotten"], "y": []})
        for place in ("one", "forgotten"):
            ends_ms = float(await server.cli("ZSCORE", f"{PREFIX}:places:x", place))
            assert ends_ms == pytest.approx((heard.now_s + PLACE_TTL_S) * 1000, abs=1)
        assert list(await exchange.acquire([wanted("x", "another", 2)])) == [False]


async def test_nothing_outlives_its_owners(server: RedisServer) -> None:
    """Every key expires with the last of what is in it, and what is given back leaves none."""
    async with joined(server) as (exchange,):
        await exchange.beat({"d:x": (1, 2)}, {"x": ["p"]})
        await exchange.acquire([wanted("y", "q"), wanted("z", "r")])
        await exchange.acquire([wanted("y", "refused")])
        left = await server.ttls()
        assert set(left) == {MEMBERS, SHARES, *(f"{PREFIX}:places:{id}" for id in "xyz")}
        for key, left_ms in left.items():
            assert 0 < left_ms <= 1000 * (PLACE_TTL_S if ":places:" in key else SHARE_TTL_S)
        await exchange.release({"x": ["p"], "y": ["q"], "z": ["r"]})
        await exchange.leave()
        assert await server.ttls() == {}


async def test_leaving_takes_only_oneself_away(server: RedisServer) -> None:
    """The others stay, and so do places: a session may outlive the end of the beat."""
    async with exchanges(server.settings(), "a", "b", "c") as (first, second, third):
        await first.beat({"d:x": (0, 1)}, {"x": ["p"]})
        await second.beat({"d:x": (0, 2)}, {})
        await first.leave()
        assert dict((await third.beat({}, {})).totals) == {"d:x": (0, 2)}
        assert list(await third.acquire([wanted("x", "q")])) == [False]


POISON = {
    "empty": b"",
    "no JSON": b"{",
    "null": b"null",
    "text": b'"d:x"',
    "number": b"7",
    "array": b"[[1,2],[3,4]]",
    "binary": bytes(range(256)),
    "infinite": b'{"d:x":[0,1e999]}',
    "Infinity": b'{"d:x":[0,Infinity]}',
    "NaN": b'{"d:x":[0,NaN],"d:y":[nan]}',
    "negative": b'{"d:x":[0,-1]}',
    "huge": b'{"d:x":[0,%d]}' % (MOST * 2),
    "null inside": b'{"d:x":[1,null,3]}',
    "text inside": b'{"d:x":[1,"2",3]}',
    "nested": b'{"d:x":[[1]]}',
    "object": b'{"d:x":{"1":5,"2":6}}',
    "sparse": b'{"d:x":{"1000000":5}}',
    "true": b'{"d:x":[true]}',
    "too long": b'{"d:x":[%s]}' % b",".join([b"1"] * 65),
    "long name": b'{"%s":[1]}' % (b"n" * 3000),
    "deep": b'{"d:x":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "big": b'{"d:x":[0,1],"pad":"' + b"p" * MOST_SHARE_BYTES + b'"}',
}


async def poison(server: RedisServer, now_s: float, member: str, payload: bytes) -> None:
    """Publish in the name of a member that lives."""
    await server.cli("ZADD", MEMBERS, round((now_s + SHARE_TTL_S - 0.5) * 1000), member)
    await server.cli("HSET", SHARES, member, payload)


async def test_poison_does_not_spoil_the_sum(server: RedisServer) -> None:
    """Whatever a foreign writer publishes, the sound shares add up as if it were not there."""
    async with exchanges(server.settings(), "a", "b") as (first, second):
        now_s = (await first.beat({"d:x": (1, 2), "d:y": (0, 3)}, {})).now_s
        for name, payload in POISON.items():
            await poison(server, now_s, name, payload)
            heard = await second.beat({}, {})
            assert dict(heard.totals) == {"d:x": (1, 2), "d:y": (0, 3)}, name
            assert heard.members == 2
            await server.cli("ZREM", MEMBERS, name)


async def test_what_is_sound_beside_poison_counts(server: RedisServer) -> None:
    """An entry that is none takes only itself away; a name that is no text does not take the whole answer with it."""
    async with joined(server) as (exchange,):
        now_s = (await exchange.beat({}, {})).now_s
        await poison(server, now_s, "mixed", b'{"d:x":[0,1],"d:y":"no","d:z":[0,-1],"d:\xff\xfe":[0,9],"d:\\u0000\\n":[0,4]}')
        totals = dict((await exchange.beat({}, {})).totals)
        assert (totals["d:x"], totals["d:\0\n"]) == ((0, 1), (0, 4))
        assert len(totals) == 3 and not {"d:y", "d:z"} & totals.keys()


async def test_too_many_names_are_left_out(server: RedisServer) -> None:
    """More names than anybody takes make a sum of so many, not a failure."""
    async with joined(server) as (exchange,):
        now_s = (await exchange.beat({}, {})).now_s
        for part in range(2):
            share = {f"d:{part}-{number}": [1] for number in range(15_000)}
            await poison(server, now_s, f"many {part}", json.dumps(share, separators=(",", ":")).encode())
        assert len((await exchange.beat({}, {})).totals) == 20_000


async def test_sums_keep_every_digit(server: RedisServer) -> None:
    """Numbers are neither rounded to 14 digits nor written as text that others read differently; a sum ends at ``MOST``."""
    async with exchanges(server.settings(), "a", "b", "c") as (first, second, third):
        await first.beat({"d:x": (MOST - 1, MOST - 8, 0.1, 1e-9, MOST)}, {})
        await second.beat({"d:x": (MOST - 3, 7, 0.2, 0, MOST), "d:empty": ()}, {})
        totals = dict((await third.beat({}, {})).totals)
        assert totals == {"d:x": (MOST - 1, MOST - 1, 0.1 + 0.2, 1e-9, MOST), "d:empty": ()}


async def test_many_places_at_once(server: RedisServer) -> None:
    """More than Lua's stack holds."""
    async with joined(server) as (exchange,):
        places = [f"a:{number}" for number in range(9001)]
        await exchange.beat({}, {"x": places, "y": places[:500]})
        assert await server.cli("ZCARD", f"{PREFIX}:places:x") == 9001
        batch = [wanted(f"z{number % 7}", f"a:{number}", 40) for number in range(300)]
        assert sum(await exchange.acquire(batch)) == 7 * 40
        await exchange.release({"x": places, "y": places[:500]})
        assert await server.cli("EXISTS", f"{PREFIX}:places:x", f"{PREFIX}:places:y") == 0


async def test_nothing_is_asked_for_nothing(one: RedisServer) -> None:
    """An empty batch costs no round trip."""
    async with joined(one) as (exchange,):
        assert list(await exchange.acquire([])) == []
        await exchange.release({})
        await exchange.release({"x": []})
        assert await one.clients() == 0


async def test_a_share_that_nobody_would_read_is_not_published(one: RedisServer) -> None:
    """It would be left out by the others without a word."""
    share = {f"d:{'n' * 90}{number}": (1.5,) * 10 for number in range(MOST_SHARE_BYTES // 100)}
    async with joined(one) as (exchange,):
        with pytest.raises(ExchangeError, match="expected at most"):
            await exchange.beat(share, {})
        assert await one.ttls() == {}


# --- what it costs -------------------------------------------------------------------------------


async def test_a_beat_is_one_round_trip(server: RedisServer) -> None:
    """20 deployments, 200 beats: 200 EVALSHA and nothing else, over connections that are made once and named nowhere."""
    share = {f"d:deployment-{number}": tuple(range(number, number + 10)) for number in range(20)}
    renew = {f"deployment-{number}": [f"a:{number}"] for number in range(20)}
    async with proxy(server) as before, exchanges(FleetSettings(nodes=(before.address,)), "a") as (exchange,):
        await exchange.beat(share, renew)
        first = await server.commands()
        assert not {"hello", "select", "client|setinfo", "client|setname", "command"} & first.keys()
        pieces = len(before.asked)
        for _ in range(200):
            await exchange.beat(share, renew)
        after = await server.commands()
        assert after["evalsha"] - first["evalsha"] == 200
        # The one with the script in it was the first.
        assert after["eval"] == first["eval"] == 1
        own = {"ping", "info"}
        used = {command for command in after if after[command] != first.get(command)} - own
        assert used == {"evalsha", "time", *map(str.lower, IN_BEATS)}
        assert sum(piece.count(b"EVALSHA") for piece in before.asked[pieces:]) == 200
        assert (before.dialled, before.most_open) == (2, 2)


async def test_connections_are_few_whatever_comes(one: RedisServer) -> None:
    """A hundred calls at once share three connections, and none of them fails."""
    async with proxy(one) as before, exchanges(FleetSettings(nodes=(before.address,)), "a") as (exchange,):
        await exchange.beat({}, {})
        for _ in range(5):
            results = await asyncio.gather(
                *(exchange.acquire([wanted("x", f"a:{number}", 7)]) for number in range(15)),
                *(exchange.release({"y": [f"a:{number}"]}) for number in range(15)),
                exchange.beat({}, {}),
            )
            assert sum(granted == [True] for granted in results[:15]) == 7
        assert before.most_open <= MOST_LINKS


async def test_calls_do_not_wait_for_each_other(one: RedisServer) -> None:
    """While a beat has no answer, places are asked for and given back; and the other way round."""
    async with proxy(one) as before, exchanges(FleetSettings(nodes=(before.address,)), "a") as (exchange,):
        await exchange.beat({}, {})
        await exchange.acquire([wanted("x", "p")])
        calls: dict[bytes, Callable[[], Coroutine[Any, Any, Any]]] = {
            BEAT.sha.encode(): lambda: exchange.beat({}, {}),
            ACQUIRE.sha.encode(): lambda: exchange.acquire([wanted("x", "p")]),
        }
        for sha in calls:
            before.asked.clear()
            before.hold(sha)
            held = asyncio.create_task(calls[sha]())
            await before.holding(sha)
            for other in calls.keys() - {sha}:
                await calls[other]()
            await exchange.release({"y": ["p"]})
            assert not held.done()
            before.let_go()
            await held


async def test_after_a_failure_no_connection_is_used_again(one: RedisServer) -> None:
    """Not those that were free, nor one on which a call was under way; who asks for a place afterwards need not dial."""
    async with proxy(one) as before, exchanges(FleetSettings(nodes=(before.address,)), "a") as (exchange,):
        await exchange.beat({}, {})
        await exchange.acquire([wanted("x", "p")])
        assert before.dialled == 2
        before.asked.clear()
        before.hold(ACQUIRE.sha.encode())
        under_way = asyncio.create_task(exchange.acquire([wanted("x", "p")]))
        await before.holding(ACQUIRE.sha.encode())
        await one.cli("REPLICAOF", "127.0.0.1", free_port())
        await fails(lambda: exchange.beat({}, {}))
        await one.cli("REPLICAOF", "NO", "ONE")
        before.let_go()
        assert list(await under_way) == [True]
        await exchange.beat({}, {})
        assert before.dialled == 4
        await everything(exchange)
        assert before.dialled == 4


def test_the_client_library_is_imported_on_need() -> None:
    """Only a router with a fleet pays for it, when its exchange is made."""
    code = (
        "import sys; from router.config.settings import FleetSettings; from router.fleet.redis_link import RedisExchange; "
        "assert 'redis' not in sys.modules; RedisExchange(FleetSettings(nodes=(('127.0.0.1', 1),)), member='a'); "
        "assert 'redis' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment(), check=True, timeout=60)


# --- who may ask ---------------------------------------------------------------------------------

USER, PASSWORD = "fleet", "correct-horse-battery"
# Those of ``needed_commands`` that beats make.
IN_BEATS = {"ZADD", "ZRANGE", "ZSCORE", "ZREMRANGEBYSCORE", "HSET", "HGETALL", "PEXPIRE"}


def needed_commands() -> list[str]:
    """The commands that the docstring tells an operator to allow."""
    found = re.search(r"^ +(EVALSHA .*)$", RedisExchange.__doc__ or "", re.MULTILINE)
    assert found is not None
    return found[1].split()


@pytest.mark.parametrize("text", ["config.example.yaml", "docs/fleet.md"])
def test_the_texts_name_the_commands_that_are_needed(text: str) -> None:
    """What an operator reads is what ``test_each_right_is_needed`` tries."""
    words = (Path(__file__).parents[2] / text).read_text(encoding="utf-8").upper().replace("+", " ").split()
    start = words.index("EVALSHA")
    assert sorted(word.strip(",") for word in words[start : start + len(needed_commands())]) == sorted(needed_commands())


async def everything(exchange: Exchange) -> None:
    """Make every call."""
    await exchange.beat({"d:x": (1,)}, {"x": ["p"]})
    await exchange.acquire([wanted("x", "q", 2), wanted("x", "p", 1)])
    await exchange.release({"x": ["p", "q"]})
    await exchange.leave()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Of certificates."""
    return Authority(tmp_path / "authority")


async def test_tls_and_a_user_with_few_rights(tmp_path: Path, authority: Authority) -> None:
    """Over TLS with a client's certificate, a user with the commands of the docstring and the prefix can do everything."""
    async with redis_server(require("redis-7.0"), tmp_path, tls=authority) as server:
        await server.cli(*acl_user(USER, PASSWORD, "voice", " ".join(needed_commands())))
        login: dict[str, Any] = {"username": USER, "password": Secret(PASSWORD)}
        async with joined(server, prefix="voice", **login) as (exchange,):
            await everything(exchange)
            await server.cli("SCRIPT", "FLUSH")
            await everything(exchange)
            await exchange.beat({}, {})
            # Neither by PING nor by names and versions was it asked for more.
            assert not {"hello", "client", "client|setinfo", "select"} & (await server.commands()).keys()
            assert await server.cli("ACL", "LOG") == []
        async with joined(server, prefix="foreign", **login) as (exchange,):
            assert "permission" in await fails(exchange.leave)
        async with joined(server, prefix="voice", username=USER, password=Secret("incorrect-horse")) as (exchange,):
            said = await all_fail(exchange)
            assert all("AuthenticationError" in line for line in said)
            assert not any("horse" in line for line in said)


@pytest.mark.parametrize("left_out", needed_commands())
async def test_each_right_is_needed(one: RedisServer, left_out: str) -> None:
    """The docstring asks for no command that is not used."""
    commands = [command for command in needed_commands() if command != left_out]
    await one.cli(*acl_user(USER, PASSWORD, "realtime-router", " ".join(commands)))
    async with joined(one, username=USER, password=Secret(PASSWORD)) as (exchange,):
        # ``leave`` alone must have HDEL: a beat needs it where somebody's share has ended.
        with pytest.raises(ExchangeError, match=r"(?i)permission|can't run"):
            await everything(exchange)


@pytest.mark.parametrize("spoilt", ["ca_file", "client_cert", "host", "no tls"])
async def test_tls_is_checked(tmp_path: Path, authority: Authority, spoilt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of another authority or name, a client without a certificate, and a client that asks in plain text all fail."""
    other = Authority(tmp_path / "other")
    # Who names authorities trusts no others, those of the system included.
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    spoiling: dict[str, dict[str, Any]] = {
        "ca_file": {"ca_file": str(other.ca_file)},
        "client_cert": {"client_cert": None, "client_key": None},
        "host": {"nodes": (("localhost.localdomain", 0),)},
        "no tls": {"tls": False},
    }
    async with redis_server(require("redis-7.0"), tmp_path, tls=authority) as server:
        options: dict[str, Any] = {"tls": True, "nodes": (server.address,), **server.files}
        async with exchanges(FleetSettings(**options), "a") as (exchange,):
            await recovers(exchange)
        async with exchanges(FleetSettings(**options | {"ca_file": None}), "a") as (exchange,):
            await recovers(exchange)
        if spoilt == "host":
            spoiling["host"]["nodes"] = (("ip6-localhost", server.port),)
            monkeypatch.setattr(socket, "getaddrinfo", resolving_to("127.0.0.1"))
        async with exchanges(FleetSettings(**options | spoiling[spoilt]), "a") as (exchange,):
            said = " ".join(await all_fail(exchange))
            assert ("certificate verify failed" in said.lower()) == (spoilt in ("ca_file", "host"))


def resolving_to(address: str) -> Callable[..., list[Any]]:
    """A resolver for which every name is one address."""

    def getaddrinfo(host: str, port: Any, *_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port or 0)))]

    return getaddrinfo


@pytest.mark.parametrize("key", ["ca_file", "client_cert", "client_key"])
async def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path, authority: Authority, key: str) -> None:
    """The message says which file; when it is put right, the next call works."""
    async with redis_server(require("redis-7.0"), tmp_path, tls=authority) as server:
        file = tmp_path / "replaced.pem"
        options: dict[str, Any] = {**server.files, key: str(file)}
        async with exchanges(FleetSettings(nodes=(server.address,), tls=True, **options), "a") as (exchange,):
            named = str(file) if key != "client_key" else options["client_cert"]
            assert named in await fails(lambda: exchange.beat({}, {}))
            file.symlink_to(server.files[key])
            await recovers(exchange)


async def test_a_socket_and_a_database(tmp_path: Path) -> None:
    """By the path of a Unix socket, with a password and a database of its own."""
    async with redis_server(require("redis-7.0"), tmp_path, unix=True, password=PASSWORD) as server:
        async with joined(server, db=3, password=Secret(PASSWORD)) as (exchange,):
            await everything(exchange)
            await exchange.beat({}, {})
            assert (await server.info("keyspace"))["db3"].startswith("keys=2,")
            assert await server.ttls() == {}
        async with joined(server, db=99, password=Secret(PASSWORD)) as (exchange,):
            assert "DB index" in await fails(lambda: exchange.beat({}, {}))
        async with joined(server) as (exchange,):
            assert "nauthenticated" in await fails(lambda: exchange.beat({}, {}))
            assert "AuthenticationError" in await fails(exchange.leave)


@pytest.mark.parametrize("garbage", ["echo", "half an echo"])
@pytest.mark.parametrize("kind", ["single", "sentinel", "cluster"])
async def test_a_password_is_in_no_message(kind: Kind, garbage: str, hurried: None) -> None:
    """A server that repeats what it was sent, or the beginning of it, does not get it into the log."""
    async with garbage_server(garbage) as port:
        settings = FleetSettings(
            kind=kind,
            nodes=(("127.0.0.1", port),),
            service="the-master",
            username=USER,
            password=Secret(PASSWORD),
            sentinel_username=USER,
            sentinel_password=Secret(PASSWORD),
        )
        async with exchanges(settings, "a") as (exchange,):
            for line in await all_fail(exchange):
                assert "repeats a password" in line and "correct" not in line and "horse" not in line
            with pytest.raises(ExchangeError) as caught:
                await exchange.leave()
            assert "correct" not in "".join(traceback.format_exception(caught.value))
            assert PASSWORD not in repr(vars(exchange))


# --- what becomes of the server ------------------------------------------------------------------


async def test_a_server_that_forgot_the_scripts_is_given_them(server: RedisServer) -> None:
    """Restarted, or flushed: the same call goes on, with one more round trip."""
    async with joined(server) as (exchange,):
        await everything(exchange)
        await server.cli("FLUSHALL")
        await server.cli("SCRIPT", "FLUSH")
        await everything(exchange)
        assert (await server.commands())["eval"] == 8


async def test_a_replica_takes_nothing(server: RedisServer) -> None:
    """Switched to read-only: calls fail, and work again when it is a master."""
    async with joined(server) as (exchange,):
        await recovers(exchange)
        await server.cli("REPLICAOF", "127.0.0.1", free_port())
        for said in (await fails(lambda: exchange.beat({}, {})), await fails(lambda: exchange.acquire([wanted("x", "p")]))):
            assert "ReadOnlyError" in said or "replica" in said
        await server.cli("REPLICAOF", "NO", "ONE")
        await recovers(exchange)


async def test_a_server_without_memory(server: RedisServer) -> None:
    """A script that has begun to make room may finish, so the fleet goes on with what is little and expires."""
    async with joined(server) as (exchange,):
        await recovers(exchange)
        await server.config_set(maxmemory_policy="noeviction", maxmemory=1)
        with pytest.raises(ServerSaid, match="OOM"):
            await server.cli("SET", "another", "x")
        await recovers(exchange)
        await everything(exchange)


async def test_a_frozen_server(one: RedisServer, hurried: None) -> None:
    """Calls end when their time is up, do not pile connections up, and work when it thaws."""
    share = {f"d:{'n' * 90}{number}": (1.5,) * 10 for number in range(MOST_SHARE_BYTES // 150)}
    async with joined(one) as (exchange,):
        await recovers(exchange)
        open_before = len(os.listdir("/proc/self/fd"))
        one.freeze()
        try:
            # More than fits between the two, so that some of it waits on this side.
            for _ in range(2):
                assert "no answer within" in await fails(lambda: exchange.beat(share, {}))
            assert {f"no answer within {seconds:g} s" for seconds in (CALL_TIMEOUT_S, CONNECT_TIMEOUT_S)} == await all_fail(
                exchange
            )

            async def ended() -> bool:
                return len(os.listdir("/proc/self/fd")) <= open_before

            await until(ended)
        finally:
            one.thaw()
        await recovers(exchange)

        async def few() -> bool:
            return await one.clients() <= MOST_LINKS

        await until(few)


async def test_a_server_that_is_killed_and_comes_back_empty(server: RedisServer) -> None:
    """Calls fail while it is away; the first one behind its start works, also where none has failed before."""
    async with joined(server) as (exchange,):
        await everything(exchange)
        await server.kill()
        assert all("Error 111" in said or "onnect" in said for said in await all_fail(exchange))
        await server.start()
        await recovers(exchange)
        await server.kill()
        await server.start()
        await recovers(exchange)


async def test_a_connection_that_the_server_ends(one: RedisServer) -> None:
    """Its limit for idle clients, or an operator: the next call dials again and does not fail."""
    async with joined(one) as (exchange,):
        await recovers(exchange)
        await one.cli("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        async def gone() -> bool:
            return await one.clients() == 0

        await until(gone)
        await recovers(exchange)


async def test_no_more_clients(one: RedisServer) -> None:
    """A server that is full says so; where there is room for one connection only, the beat lives on that one."""
    async with joined(one) as (exchange,), contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            await stack.enter_async_context(one.client())
        control = await stack.enter_async_context(one.client())
        await control.call("CONFIG", "SET", "maxclients", 9)
        assert "max number of clients" in await fails(lambda: exchange.beat({}, {}))
        await control.call("CONFIG", "SET", "maxclients", 10)
        for _ in range(3):
            assert (await exchange.beat({}, {})).members == 0


async def nonsense(kind: str, *, guide: Kind | None = None) -> None:
    """Have a server that makes no sense, and a second one where they are sentinels or nodes; make every call."""
    async with garbage_server(kind) as first, garbage_server(kind) as second:
        settings = FleetSettings(nodes=(("127.0.0.1", first),))
        if guide is not None:
            nodes = (("127.0.0.1", first), ("127.0.0.1", second))
            settings = FleetSettings(kind=guide, nodes=nodes, service="the-master")
        async with exchanges(settings, "a") as (exchange,):
            for said in await all_fail(exchange):
                assert len(said) < (400 if guide is None else 1200)


@pytest.mark.parametrize("kind", [kind for kind, (_, goes_on) in GARBAGE.items() if goes_on])
async def test_endless_garbage(kind: str, hurried: None) -> None:
    """Whatever is answered for ever, every call fails in its time with a short message, and nothing is left open."""
    await nonsense(kind)


async def test_garbage(hurried: None) -> None:
    """The same for whatever is answered once, each in the place of a server, of sentinels, of nodes."""
    async with asyncio.TaskGroup() as tasks:
        for kind, (_, goes_on) in GARBAGE.items():
            for guide in (None, "sentinel", "cluster"):
                if not goes_on:
                    tasks.create_task(nonsense(kind, guide=guide))


@pytest.mark.parametrize("kind", ["a string", "strings", "items"])
async def test_a_flood_is_not_taken(kind: str, hurried: None) -> None:
    """An answer that is too long, sent as fast as it goes, is refused and not stored until the time is up."""
    async with flood_server(kind) as flood, exchanges(FleetSettings(nodes=(("127.0.0.1", flood.port),)), "a") as (exchange,):
        # On a busy machine the time may be up first for one of them.
        assert any("InvalidResponse" in said for said in await all_fail(exchange))
        for connection in flood.connections:
            # With all that lies in between.
            assert connection.taken < 3 * redis_client.MOST_BYTES


async def test_as_much_as_may_be_is_taken(one: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest answer that a fleet gives is none of those that are refused."""
    # All that comes from one process: the first share must not end before the last one is there.
    monkeypatch.setattr("router.fleet.redis_link.SHARE_TTL_S", 60.0)
    names = [f"d:{'n' * 250}{number}" for number in range(20_000)]
    async with exchanges(one.settings(), *"abcdefgh") as members:
        for index, member in enumerate(members):
            await member.beat({name: (number,) * 10 for number, name in enumerate(names[index * 2500 : (index + 1) * 2500])}, {})
        heard = await members[0].beat({}, {})
        assert len(heard.totals) == 17_500
        batch = [wanted("x", f"a:{number}", 5000) for number in range(5000)]
        assert all(await members[0].acquire(batch))


# --- several servers -----------------------------------------------------------------------------


async def answers_again(exchange: Exchange) -> None:
    """Beat until there is an answer."""

    async def again() -> bool:
        with contextlib.suppress(ExchangeError):
            return (await exchange.beat({"d:x": (1,)}, {})).members == 0
        return False

    await until(again)


async def a_master_dies(folder: Path) -> None:
    """Calls fail, and before long they reach its successor; sentinels that are down or make no sense are passed over."""
    async with watched_servers(require("redis-7.0"), folder, password=PASSWORD) as watched, garbage_server("junk") as junk:
        rights = "+sentinel|get-master-addr-by-name"
        await watched.sentinel.cli("ACL", "SETUSER", USER, "reset", "on", f">{PASSWORD}x", rights)
        login: dict[str, Any] = {"kind": "sentinel", "sentinel_username": USER, "sentinel_password": Secret(f"{PASSWORD}x")}
        nodes = (("127.0.0.1", free_port()), ("127.0.0.1", junk), watched.sentinel.address)
        async with exchanges(FleetSettings(nodes=nodes, service=MASTER, **login), "a") as (exchange,):
            await recovers(exchange)
            assert set(await watched.servers[0].ttls()) >= {MEMBERS}
            await watched.servers[0].kill()
            await fails(lambda: exchange.beat({}, {}))
            await answers_again(exchange)
            assert await watched.master() == watched.servers[1].port
            await recovers(exchange)
        async with exchanges(FleetSettings(nodes=nodes[2:], service="nobody", **login), "a") as (exchange,):
            assert "knows no master 'nobody'" in await fails(lambda: exchange.beat({}, {}))


async def a_master_becomes_a_replica(folder: Path) -> None:
    """The old master lives on as a replica: one call fails, then the sentinel is asked again."""
    async with watched_servers(require("redis-7.0"), folder) as watched, exchanges(watched.settings(), "a") as (exchange,):
        await recovers(exchange)
        await watched.sentinel.cli("SENTINEL", "FAILOVER", MASTER)

        async def changed() -> bool:
            return await watched.master() == watched.servers[1].port

        await until(changed)
        # The sentinel does the same, some seconds later.
        await watched.servers[0].cli("REPLICAOF", *watched.servers[1].address)
        await fails(lambda: exchange.beat({}, {}))
        await answers_again(exchange)
        assert (await watched.servers[1].info("replication"))["role"] == "master"
        assert MEMBERS in await watched.servers[1].ttls()


async def test_sentinels_lead_to_the_master(tmp_path: Path) -> None:
    """Whether the old one dies or becomes a replica; both at a time, since all of it is waiting."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(a_master_dies(tmp_path))
        tasks.create_task(a_master_becomes_a_replica(tmp_path))


async def slots_move(program: str, folder: Path) -> None:
    """A cluster is found by way of any node, also where one is down; when the slot moves, the calls follow after one failure."""
    async with cluster(program, folder) as nodes:
        owner = await nodes.owner(MEMBERS)
        others = [node for node in nodes.nodes if node is not owner]
        seeds = (("127.0.0.1", free_port()), others[0].address)
        async with exchanges(FleetSettings(kind="cluster", nodes=seeds), "a", "b") as (first, second):
            await everything(first)
            await first.beat({"d:x": (1, 2)}, {"x": ["p"], "y": ["q"]})
            assert dict((await second.beat({}, {})).totals) == {"d:x": (1, 2)}
            assert len(await owner.ttls()) == 4
            for node in others:
                assert await node.ttls() == {}
            before = await owner.commands()
            for _ in range(20):
                await first.beat({"d:x": (1, 2)}, {})
            after = await owner.commands()
            assert after["evalsha"] - before["evalsha"] == 20
            await nodes.move(MEMBERS, others[1])
            assert "oved" in await fails(lambda: first.beat({}, {}))
            assert (await first.beat({"d:x": (1, 2)}, {})).members == 0
            assert MEMBERS in await others[1].ttls()


async def test_a_cluster_keeps_all_keys_in_one_slot(tmp_path: Path) -> None:
    """Of each kind; both at a time, since most of it is waiting."""
    async with asyncio.TaskGroup() as tasks:
        for part in ("redis-7.0", "valkey"):
            tasks.create_task(slots_move(require(part), tmp_path))


# --- its end, and the end of calls ---------------------------------------------------------------


async def test_a_cancelled_call_leaves_no_answer_behind(one: RedisServer) -> None:
    """What comes back for a call that was given up is not taken for the answer of the next."""
    async with proxy(one) as before, exchanges(FleetSettings(nodes=(before.address,)), "a") as (exchange,):
        await exchange.beat({}, {})
        await exchange.acquire([wanted("x", "taken")])
        for round_ in range(3):
            before.asked.clear()
            before.hold()
            given_up = asyncio.create_task(exchange.acquire([wanted("free", f"p{round_}", 9)]))
            await before.holding(b"free")
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            before.let_go()
            assert list(await exchange.acquire([wanted("x", "another")])) == [False]


@on_router_loops
async def test_calls_may_be_cancelled_at_any_moment(tmp_path: Path) -> None:
    """At every turn of the event loop, over TLS and without, on each loop: the next call works, and nothing is left open."""
    authority = Authority(tmp_path / "authority")
    for tls in (None, authority):
        async with redis_server(require("redis-7.0"), tmp_path, tls=tls, password=PASSWORD) as server:
            exchange = RedisExchange(server.settings(password=Secret(PASSWORD)), member="a")
            for turns in range(0, 80, 2):
                if turns % 10 == 0:
                    # Those that follow begin with a dial.
                    await server.cli("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                for call in (exchange.beat({"d:x": (turns,)}, {}), exchange.acquire([wanted("x", f"p{turns}")])):
                    task = asyncio.create_task(call)
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
                try:
                    assert (await exchange.beat({}, {})).members == 0
                except ExchangeError as error:
                    # The kill is heard of only now and then before the call.
                    assert turns % 10 == 0 and "losed" in str(error), error
                    assert (await exchange.beat({}, {})).members == 0
                assert await server.clients() <= MOST_LINKS + 4
            await exchange.close()

            async def none() -> bool:
                return await server.clients() == 0

            await until(none)
            gc.collect()


@on_router_loops
async def test_it_works_on_each_loop(tmp_path: Path, hurried: None) -> None:
    """The router's own loops have a TLS of their own; a frozen server behind it is cut off as any other."""
    authority = Authority(tmp_path / "authority")
    async with redis_server(require("redis-7.0"), tmp_path, tls=authority) as server:
        async with joined(server) as (exchange,):
            await everything(exchange)
            server.freeze()
            await all_fail(exchange)
            server.thaw()
            await recovers(exchange)


async def test_after_the_end_nothing_is_open(one: RedisServer) -> None:
    """Connections are gone, those under way included, and later calls fail at once."""
    async with proxy(one) as before:
        exchange = RedisExchange(FleetSettings(nodes=(before.address,)), member="a")
        await everything(exchange)
        before.asked.clear()
        before.hold()
        under_way = asyncio.create_task(exchange.beat({}, {}))
        await before.holding()
        await exchange.close()
        with pytest.raises(ExchangeError):
            await under_way
        assert {"the exchange is closed"} == await all_fail(exchange)
        await exchange.close()

        async def none() -> bool:
            return await one.clients() == 0

        await until(none)


async def test_a_name_server_that_hangs_takes_one_thread(hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lookups cannot be given up: however often the exchange tries, one of them is under way, and no dial waits behind it."""
    asked = threading.Semaphore(0)
    answer = threading.Event()
    real = socket.getaddrinfo

    def slow(host: Any, *arguments: Any, **options: Any) -> Any:
        if host != "redis.example":
            return real(host, *arguments, **options)
        asked.release()
        answer.wait(20)
        raise OSError("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    exchange = RedisExchange(FleetSettings(nodes=(("redis.example", 6379),)), member="a")
    try:
        for _ in range(6):
            with pytest.raises(ExchangeError):
                await exchange.acquire([Wanted(deployment="d", limit=1, place="a:1")])
        assert asked.acquire(timeout=10)
        assert not asked.acquire(blocking=False)
    finally:
        answer.set()
        await exchange.close()


async def test_what_may_be_wrong_with_the_configuration_is_said(tmp_path: Path, hurried: None) -> None:
    """A password that is missing, and TLS on one side only: the words of server and library alone would leave one guessing."""
    program = require("redis-7.0")
    async with redis_server(program, tmp_path, password="of-the-server") as guarded:
        assert "asks for a password (redis_password)" in await _first_failure(guarded.settings())
        tls = FleetSettings(nodes=(guarded.address,), tls=True)
        assert "it may not speak TLS" in await _first_failure(tls)
    async with redis_server(program, tmp_path, tls=Authority(tmp_path)) as encrypted:
        assert "it may want TLS" in await _first_failure(FleetSettings(nodes=(encrypted.address,)))


async def _first_failure(settings: FleetSettings) -> str:
    exchange = RedisExchange(settings, member="a")
    try:
        with pytest.raises(ExchangeError) as caught:
            await exchange.beat({}, {})
    finally:
        await exchange.close()
    return str(caught.value)
