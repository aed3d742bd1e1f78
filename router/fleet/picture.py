"""What a process says of itself and what it hears of the others. Pure: the clock is handed in.

A share is a mapping of names to vectors of numbers. Names are ``d:`` and a deployment's id, or ``k:`` and a virtual key's
name. Vectors add up position by position (``FIELDS``), but for the positions of ``MAXIMA``, of which the highest counts. So
the sum of the others can be made wherever it is cheapest, and processes of different versions of the program add up as long
as fields are only appended.

Everything heard comes from outside and is taken as hostile: a name that is too long, a number that is none, negative or
beyond ``MOST`` is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import orjson

from strategies.base import NOWHERE, Elsewhere, Freshness

Vector = tuple[float, ...]

#: Positions of a deployment's vector; new ones go to the end. ``*_sum`` and ``*_count`` are of averages that were measured.
FIELDS: Final = (
    "spent",
    "sessions",
    "starts",
    "minute_starts",
    "minute_tokens",
    "ejected",
    "ready_sum",
    "ready_count",
    "first_audio_sum",
    "first_audio_count",
)
#: So many positions at the beginning are no sums: of these the highest of all processes counts.
MAXIMA: Final = 1
#: Beyond this, a number is no count of anything here; sums of it stay exact.
MOST: Final = 2**50
# A name is a deployment's id or a key's name with two characters in front.
_LONGEST_NAME: Final = 600
_MOST_FIELDS: Final = 64
_MOST_NAMES: Final = 20_000

#: Up to this age of the picture, seconds, all candidates are compared; up to the second, a random pair; then own counts only.
FRESH_S: Final = 2.0
AGEING_S: Final = 10.0

_NOTHING: Final[Mapping[str, Vector]] = MappingProxyType({})


class NotAShare(ValueError):
    """What was heard is no share or sum of shares."""


def encode(share: Mapping[str, Vector]) -> bytes:
    """Return a share as JSON: an object of arrays of numbers."""
    return orjson.dumps(share)


def decode(data: bytes) -> Mapping[str, Vector]:
    """Read a share, or a sum of some, that comes from outside. Entries that are none are left out.

    Raises:
        NotAShare: it is no JSON object.
    """
    try:
        raw = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise NotAShare(f"found {len(data)} bytes that are no JSON, expected an object of arrays") from None
    if not isinstance(raw, dict) or len(raw) > _MOST_NAMES:
        raise NotAShare(f"found {type(raw).__name__}, expected an object of at most {_MOST_NAMES} arrays")
    return {name: vector for name, value in raw.items() if len(name) <= _LONGEST_NAME and (vector := _vector(value)) is not None}


def add(shares: Iterable[Mapping[str, Vector]]) -> Mapping[str, Vector]:
    """Return the sum of shares."""
    total: dict[str, list[float]] = {}
    for share in shares:
        for name, vector in share.items():
            sums = total.setdefault(name, [])
            sums.extend([0] * (len(vector) - len(sums)))
            for position, value in enumerate(vector):
                together = max(sums[position], value) if position < MAXIMA else sums[position] + value
                sums[position] = min(together, MOST)
    return {name: tuple(sums) for name, sums in total.items()}


def vector(**fields: float) -> Vector:
    """Return a deployment's vector; a field that is not named is 0.

    Raises:
        TypeError: there is no such field.
    """
    if unknown := fields.keys() - set(FIELDS):
        raise TypeError(f"found {', '.join(sorted(unknown))}, expected some of {', '.join(FIELDS)}")
    return tuple(fields.get(name, 0) for name in FIELDS)


def field(vector: Vector, name: str) -> float:
    """Return a field of a deployment's vector; 0 where the process that made it does not know that field."""
    position = FIELDS.index(name)
    return vector[position] if position < len(vector) else 0


def _vector(value: Any) -> Vector | None:
    if not isinstance(value, list) or len(value) > _MOST_FIELDS:
        return None
    if not all(type(item) in (int, float) and 0 <= item <= MOST for item in value):
        return None
    return tuple(value)


class Picture:
    """What the other processes hold, as last heard, and how far it can be trusted.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # When it was asked for: its numbers cannot be older than that by more than one beat of the others.
        self._taken_at = -math.inf
        self._totals: Mapping[str, Vector] = _NOTHING
        self._views: dict[tuple[str, Freshness], Elsewhere] = {}
        #: Other processes in the last picture, however old; for shares of a limit while nothing fresher is known.
        self.members = 0

    def take(self, totals: Mapping[str, Vector], *, members: int, asked_at: float) -> None:
        """Put a new one in the place of the old.

        Args:
            totals: the others' shares, added up.
            members: how many others.
            asked_at: a reading of the clock from before they were asked.
        """
        self._totals = totals
        self._views.clear()
        self._taken_at = asked_at
        self.members = members

    def drop(self) -> None:
        """Trust nothing of it any more, but the number of members."""
        self._taken_at = -math.inf
        self._totals = _NOTHING
        self._views.clear()

    @property
    def age_s(self) -> float:
        """Seconds since it was asked for; infinite when there is none."""
        return max(0.0, self._clock() - self._taken_at)

    @property
    def freshness(self) -> Freshness:
        """How far it can be trusted."""
        age_s = self._clock() - self._taken_at
        if age_s <= FRESH_S:
            return Freshness.FRESH
        return Freshness.AGEING if age_s <= AGEING_S else Freshness.LOCAL

    def of(self, deployment: str) -> Elsewhere:
        """Return what others hold of a deployment."""
        freshness = self.freshness
        if freshness is Freshness.LOCAL:
            return NOWHERE
        view = self._views.get((deployment, freshness))
        if view is None:
            # Made once a picture: a strategy looks at every candidate of every session.
            view = self._views[deployment, freshness] = self._view(self._totals.get(f"d:{deployment}", ()), freshness)
        return view

    def total(self, deployment: str, name: str) -> float:
        """Return the sum (or maximum) of a field of a deployment over the others; 0 when nothing can be trusted."""
        if self.freshness is Freshness.LOCAL:
            return 0
        return field(self._totals.get(f"d:{deployment}", ()), name)

    def sessions_of_key(self, name: str) -> int:
        """Return the sessions of a virtual key in other processes."""
        if self.freshness is Freshness.LOCAL:
            return 0
        held = self._totals.get(f"k:{name}", ())
        return int(held[MAXIMA]) if len(held) > MAXIMA else 0

    def local_share(self, limit: int) -> int:
        """Return this process's part of a limit of the fleet, at least 1, by the last known number of members."""
        return max(1, limit // (self.members + 1))

    def _view(self, held: Vector, freshness: Freshness) -> Elsewhere:
        ready, audio = field(held, "ready_count"), field(held, "first_audio_count")
        return Elsewhere(
            freshness=freshness,
            members=self.members,
            sessions=int(field(held, "sessions")),
            starts=int(field(held, "starts")),
            ejected=int(field(held, "ejected")),
            ready_s=field(held, "ready_sum") / ready if ready else None,
            first_audio_s=field(held, "first_audio_sum") / audio if audio else None,
        )
