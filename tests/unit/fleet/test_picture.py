"""Shares and their sum, and how far a picture is trusted."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.fleet.picture import FIELDS, MAXIMA, MOST, NotAShare, Picture, add, decode, encode, field, vector
from strategies.base import NOWHERE, Freshness
from tests.helpers.clock import ManualClock

NUMBERS = st.one_of(st.integers(0, MOST), st.floats(0, 1e9, allow_nan=False))
SHARES = st.dictionaries(st.text(max_size=20), st.lists(NUMBERS, max_size=12).map(tuple), max_size=6)


def test_a_vector_has_its_fields_in_their_places() -> None:
    """What was put in comes out by name, everything else is 0, and there are no other names."""
    made = vector(sessions=3, ready_sum=0.5, ready_count=1)
    assert field(made, "sessions") == 3
    assert field(made, "ready_sum") == 0.5
    assert [name for name in FIELDS if field(made, name)] == ["sessions", "ready_sum", "ready_count"]
    with pytest.raises(TypeError, match="session, expected some of spent"):
        vector(session=1)


def test_an_older_process_says_less() -> None:
    """A vector that ends earlier adds up all the same; what it does not say is 0."""
    assert add([{"d:a": (0.5, 2)}, {"d:a": (0.25, 3, 7)}, {"d:b": ()}]) == {"d:a": (0.5, 5, 7), "d:b": ()}
    assert field((0.5, 2), "starts") == 0


@given(st.lists(SHARES, max_size=4))
def test_sums_do_not_depend_on_the_order(shares: list[dict[str, tuple[float, ...]]]) -> None:
    """Who beats first makes no difference, and maxima are maxima."""
    forwards, backwards = add(shares), add(reversed(shares))
    assert forwards.keys() == backwards.keys()
    for name, total in forwards.items():
        assert total == pytest.approx(backwards[name])
        for position in range(min(MAXIMA, len(total))):
            assert total[position] == max(share[name][position] for share in shares if len(share.get(name, ())) > position)


@given(SHARES)
def test_a_share_survives_the_way(share: dict[str, tuple[float, ...]]) -> None:
    """What was published is what is heard."""
    assert decode(encode(share)) == share


HOSTILE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(HOSTILE)
def test_whatever_is_heard_is_a_share_or_refused(value: Any) -> None:
    """No JSON raises anything but the one error, and what gets through is finite, not negative, and no larger than a count."""
    try:
        data = orjson.dumps(value)
    except TypeError:
        return  # an integer that this JSON has not
    try:
        heard = decode(data)
    except NotAShare:
        return
    for numbers in heard.values():
        assert all(type(number) in (int, float) and 0 <= number <= MOST and math.isfinite(number) for number in numbers)


@pytest.mark.parametrize("data", [b"", b"[]", b"nil", b"{", b"\xff", b'"{}"', b"1"])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    """Other people's bytes under our name are not taken for an empty fleet."""
    with pytest.raises(NotAShare, match="expected an object"):
        decode(data)


def picture(clock: ManualClock) -> Picture:
    """One that was just taken of two other processes."""
    made = Picture(clock)
    totals = {
        "d:a": vector(sessions=5, starts=50, ejected=1, ready_sum=0.5, ready_count=2, spent=0.25, minute_tokens=70),
        "k:team": (0, 4),
    }
    made.take(totals, members=2, asked_at=clock())
    return made


def test_trust_goes_by_age() -> None:
    """Up to 2 s fresh, up to 10 s ageing, then nothing of it counts but the number of members."""
    clock = ManualClock()
    made = picture(clock)
    seen = []
    for _ in range(12):
        held, tokens = made.of("a"), made.total("a", "minute_tokens")
        seen.append((held.freshness, held.sessions, tokens, made.sessions_of_key("team")))
        clock.advance(1.0)
    fresh, ageing, local = (Freshness.FRESH, 5, 70, 4), (Freshness.AGEING, 5, 70, 4), (Freshness.LOCAL, 0, 0, 0)
    assert seen == [fresh] * 3 + [ageing] * 8 + [local]
    assert made.of("a") is NOWHERE
    assert made.members == 2
    assert made.local_share(50) == 16
    assert made.local_share(2) == 1


def test_what_others_hold() -> None:
    """Averages are means over those that measured; a deployment that nobody told of is held by nobody, in the same fleet."""
    made = picture(ManualClock())
    held = made.of("a")
    assert (held.members, held.sessions, held.starts, held.ejected) == (2, 5, 50, 1)
    assert held.ready_s == 0.25
    assert held.first_audio_s is None
    unknown = made.of("b")
    assert (unknown.freshness, unknown.members, unknown.sessions) == (Freshness.FRESH, 2, 0)
    assert made.total("a", "spent") == 0.25


def test_a_process_alone_knows_nothing_of_others() -> None:
    """Without any picture everything is this process's."""
    made = Picture(ManualClock())
    assert made.of("a") is NOWHERE
    assert made.age_s == math.inf
    assert made.local_share(50) == 50
    made = picture(ManualClock())
    made.drop()
    assert made.of("a") is NOWHERE
    assert made.members == 2
