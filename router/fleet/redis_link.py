"""The exchange through a Redis or Valkey server: the rules of ``board.Board``, by the Lua of ``scripts``, one round trip a call.

A server may hang, lie, die, lose everything or become a replica at any moment. So every call is bounded as a whole, whatever
fails fails once (nothing is tried again here: the next beat comes anyway), and after any failure the next call starts from a
new connection, which finds the master of the day at the address of the day.

Tested on Redis 6.2 and 7.0 and Valkey 9.1; of Redis 8 nothing is known that would not fit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from router.config.settings import FleetSettings
from router.fleet.board import CLOCK_SLACK_S, PLACE_TTL_S, SHARE_TTL_S
from router.fleet.budget import budget
from router.fleet.exchange import ExchangeError, Heard, Wanted
from router.fleet.picture import MAXIMA, MOST, NotAShare, Vector, decode, encode
from router.fleet.scripts import ACQUIRE, BEAT, LEAVE, MOST_SHARE_BYTES, RELEASE, Script

#: Longest wait for the answer to a call, its connection included unless a beat makes that. Seconds.
CALL_TIMEOUT_S: Final = 0.1
#: Longest wait of a beat for a connection. Seconds.
CONNECT_TIMEOUT_S: Final = 1.0
#: Connections at once: a beat, a request for places, a return of some.
MOST_LINKS: Final = 3
# One for the beat, one for a request for places, which has no time to dial.
_SPARE_LINKS: Final = 2
_FILL_TIMEOUT_S: Final = 0.5
_MOST_FIELDS: Final = 64
# As ``picture.decode`` has it, in bytes of UTF-8.
_LONGEST_NAME_BYTES: Final = 2400
_MOST_NAMES: Final = 20_000
_MOST_MEMBERS: Final = 1_000_000

T = TypeVar("T")


class RedisExchange:
    """An ``exchange.Exchange`` through a server.

    A user who is bound by an ACL needs these commands, on keys that match ``{PREFIX}:*`` (with the braces)::

        EVALSHA EVAL TIME ZADD ZREM ZRANGE ZCARD ZSCORE ZREMRANGEBYSCORE HSET HDEL HGETALL PEXPIRE

    and SELECT where a database is named; a user of sentinels ``SENTINEL GET-MASTER-ADDR-BY-NAME``. All calls raise
    ``ExchangeError`` when they fail. They may be cancelled at any time.

    Args:
        settings: where the server is.
        member: this process's name, unlike that of any other, an earlier life's included.
    """

    interval_s = 1.0
    patience_s = 0.05

    def __init__(self, settings: FleetSettings, *, member: str) -> None:
        # 100 ms and 10 MiB, which a router without a fleet does not pay.
        from router.fleet.redis_client import Clients

        self._member = member
        self._prefix = f"{{{settings.prefix}}}:1"
        self._members, self._shares = f"{self._prefix}:members", f"{self._prefix}:shares"
        self._clients = Clients(settings, probe=self._members, most=MOST_LINKS, spare=_SPARE_LINKS)
        self._calls = 0

    async def beat(self, share: Mapping[str, Vector], renew: Mapping[str, Sequence[str]]) -> Heard:
        """As ``Exchange.beat``."""
        payload = encode(share)
        if len(payload) > MOST_SHARE_BYTES:
            raise ExchangeError(f"found a share of {len(payload)} bytes, expected at most {MOST_SHARE_BYTES}")
        keys, counted = self._counted(renew)
        arguments: list[bytes | str | int] = [
            _milliseconds(CLOCK_SLACK_S),
            self._member,
            payload,
            _milliseconds(SHARE_TTL_S),
            _milliseconds(PLACE_TTL_S),
            MAXIMA,
            MOST,
            _MOST_FIELDS,
            _LONGEST_NAME_BYTES,
            _MOST_NAMES,
            MOST_SHARE_BYTES,
            *counted,
        ]
        within_s = CALL_TIMEOUT_S if self._clients.connected else CONNECT_TIMEOUT_S
        heard = await self._run(BEAT, [self._members, self._shares, *keys], arguments, items=4, read=_heard, within_s=within_s)
        # What was heard stands; if a spare connection is all that cannot be had, the next beat tries again.
        with contextlib.suppress(Exception):
            # Now is the time for it: who asks for a place later has none.
            async with budget(_FILL_TIMEOUT_S):
                await self._clients.fill()
        return heard

    async def acquire(self, wanted: Sequence[Wanted]) -> Sequence[bool]:
        """As ``Exchange.acquire``."""
        if not wanted:
            return []
        numbers: dict[str, int] = {}
        arguments: list[bytes | str | int] = [_milliseconds(CLOCK_SLACK_S), _milliseconds(PLACE_TTL_S), self._member]
        for item in wanted:
            # Lua counts from 1, and the first key is that of the members.
            number = numbers.setdefault(item.deployment, len(numbers) + 2)
            arguments += (number, item.limit, item.place)
        keys = [self._members, *(self._places(deployment) for deployment in numbers)]
        known, *granted = await self._run(ACQUIRE, keys, arguments, items=len(wanted) + 1, read=_granted)
        if not known:
            raise ExchangeError("found no entry of this process, expected one: its next beat makes it")
        return granted

    async def release(self, places: Mapping[str, Sequence[str]]) -> None:
        """As ``Exchange.release``."""
        keys, counted = self._counted(places)
        if keys:
            await self._run(RELEASE, keys, counted, items=0, read=len)

    async def leave(self) -> None:
        """As ``Exchange.leave``."""
        await self._run(LEAVE, [self._members, self._shares], [self._member], items=0, read=len)

    async def close(self) -> None:
        """End all connections; calls that are under way fail, and so do later ones."""
        await self._clients.close()

    # --- parts --------------------------------------------------------------------------------------

    def _places(self, deployment: str) -> str:
        return f"{self._prefix}:places:{deployment}"

    def _counted(self, places: Mapping[str, Sequence[str]]) -> tuple[list[str], list[bytes | str | int]]:
        """Return the keys of deployments that have places, and for each the number of these and their names."""
        keys: list[str] = []
        counted: list[bytes | str | int] = []
        for deployment, names in places.items():
            if names:
                keys.append(self._places(deployment))
                counted += (len(names), *names)
        return keys, counted

    async def _run(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[bytes | str | int],
        *,
        items: int,
        read: Callable[[Sequence[Any]], T],
        within_s: float | None = None,
    ) -> T:
        """Run a script and return what is read from the items behind the mark; within ``CALL_TIMEOUT_S`` unless told."""
        self._calls += 1
        mark = b"%d" % self._calls

        def sound(answer: Any) -> T:
            if not isinstance(answer, list) or len(answer) != items + 1 or answer[0] != mark:
                raise ExchangeError(f"found an answer of another form, expected {items + 1} items, the first {mark!r}")
            return read(answer[1:])

        seconds = CALL_TIMEOUT_S if within_s is None else within_s
        try:
            async with budget(seconds):
                return await self._clients.evaluate(script, keys, [mark, *arguments], read=sound)
        except Exception as exc:
            # A connection beside the one that failed leads to the same server, which may be the wrong one by now.
            self._clients.renew()
            # Without its cause, which may repeat a password.
            raise self._clients.failure(exc, after_s=seconds) from None


def _heard(items: Sequence[Any]) -> Heard:
    now, known, members, totals = items
    return Heard(
        now_s=_whole(now, most=2**53) / 1000,
        known=_whole(known, most=1) == 1,
        members=_whole(members, most=_MOST_MEMBERS),
        totals=_totals(totals),
    )


def _granted(items: Sequence[Any]) -> Sequence[bool]:
    return [_whole(item, most=1) == 1 for item in items]


def _whole(value: Any, *, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ExchangeError(f"found {type(value).__name__}, expected a whole number from 0 to {most}")
    return value


def _totals(value: Any) -> Mapping[str, Vector]:
    if type(value) is not bytes:
        raise ExchangeError(f"found {type(value).__name__}, expected a sum of shares")
    try:
        return decode(value)
    except NotAShare:
        # One name that is no UTF-8 would take the others with it.
        try:
            return decode(value.decode("utf-8", "replace").encode())
        except NotAShare as exc:
            raise ExchangeError(f"sum of shares: {exc}") from exc


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
