"""Affinity: sessions with the same key go to the same deployment, as long as it is not overfull.

Weighted rendezvous hashing: every deployment gets a score from a hash over key and id, the best score wins. No table, no
state, the same answer in every replica, every Python version and after every restart (BLAKE2b, never ``hash()``). When a
deployment leaves, only its own keys move; when one joins, it takes only its share. A bound on the load keeps one busy key, or
many that fall together, from filling a deployment while others are idle: a deployment at or above ``load_factor`` times
its fair share is passed over for the next best score.
Sources: D. Thaler and C. Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM ToN 6 (1998); weights by
−ln(h) ÷ w: C. Schindelhauer and G. Schomaker, "Weighted distributed hash tables", SPAA 2005; the bound: V. Mirrokni,
M. Thorup, M. Zadimoghaddam, "Consistent hashing with bounded loads", 2016.

The bound counts the sessions of the whole fleet while they are known and at most 10 s old, and this process's own otherwise:
it is far from the mean, so that a number which is a moment old does no harm. Nothing else of other processes matters here.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from strategies.base import C, Call, Candidate
from strategies.least_connections import LeastConnections
from strategies.measures import fleet_sessions, weight_of
from strategies.registry import register

# BLAKE2b's personalisation: these hashes are not those of anything else that hashes the same strings.
_PERSON = b"rt-affinity-1"
# The principal of a router without keys: it tells nobody apart.
_NOBODY = "anonymous"


@register("affinity")
class Affinity:
    """Weighted rendezvous hashing with bounded load; without a key to hash, least connections."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """Options of ``affinity``.

        Attributes:
            by: where a session's key comes from: ``key`` is the name of the API key that authenticated, ``header`` and
                ``query`` are the request's header or query parameter ``name``.
            name: the header's name (in any case) or the query parameter's; required for those two, not allowed for ``key``.
            load_factor: a deployment takes at most this times its share, by weight, of the sessions of all candidates;
                1 to 1000. Near 1 is even and moves many keys, high is sticky. ``None``: no bound.
        """

        by: Literal["key", "header", "query"] = "key"
        name: str | None = None
        load_factor: float | None = 1.25

        def __post_init__(self) -> None:
            if self.by not in ("key", "header", "query"):
                raise ValueError(f"by: found {self.by!r}, expected 'key', 'header' or 'query'")
            if self.by == "key" and self.name is not None:
                raise ValueError(f"name: found {self.name!r}, expected none with by: key (it is for header and query)")
            if self.by != "key" and not (self.name or "").strip():
                raise ValueError(f"name: found {self.name!r}, expected name to say which {self.by} to hash")
            if self.load_factor is not None and not 1.0 <= self.load_factor <= 1000.0:
                raise ValueError(f"load_factor: found {self.load_factor!r}, expected 1 to 1000, or null for no bound")

    def __init__(self, options: Options, *, rng: random.Random) -> None:
        self._by = options.by
        name = (options.name or "").strip()
        self._name = name.lower() if options.by == "header" else name
        self._load_factor = options.load_factor
        self._without_key = LeastConnections(LeastConnections.Options(), rng=rng)

    def choose(self, candidates: Sequence[C], call: Call) -> C:
        """Return the candidate with the best score among those below the bound."""
        key = self._key(call)
        if not key:
            return self._without_key.choose(candidates, call)
        return min(
            self._below_bound(candidates),
            key=lambda candidate: (_distance(key, candidate.id, weight_of(candidate)), candidate.id),
        )

    def _key(self, call: Call) -> str:
        """The string to hash, empty when the session has none."""
        if self._by == "key":
            return "" if call.principal == _NOBODY else call.principal
        values = call.headers if self._by == "header" else call.query
        return values.get(self._name, "").strip()

    def _below_bound(self, candidates: Sequence[C]) -> Sequence[C]:
        """Leave out the candidates that hold their bounded share already.

        The bound is ⌈c × (m + 1) × w ÷ W⌉ for m sessions in all: the shares add up to more than m, so that one below
        it always exists, except where rounding with extreme weights hides it; then the least loaded one is taken.
        """
        if self._load_factor is None or len(candidates) == 1:
            return candidates
        weights = [weight_of(candidate) for candidate in candidates]
        held = fleet_sessions(candidates)
        allowed = self._load_factor * (math.fsum(held) + 1) / math.fsum(weights)
        loads = list(zip(candidates, held, weights, strict=True))
        below = [candidate for candidate, sessions, weight in loads if sessions < math.ceil(allowed * weight)]
        return below or [min(loads, key=_load)[0]]


def _distance(key: str, deployment: str, weight: float) -> float:
    """Return an exponentially distributed number with rate ``weight``; the smallest wins with probability weight ÷ sum."""
    # Headers may hold bytes that are not UTF-8, which Python carries as lone surrogates.
    data = key.encode("utf-8", "surrogatepass")
    hasher = hashlib.blake2b(len(data).to_bytes(8, "big"), digest_size=8, person=_PERSON)
    hasher.update(data)
    hasher.update(deployment.encode("utf-8", "surrogatepass"))
    # 52 bits and a half: exact in a float, and never 0 or 1, whose logarithms are of no use.
    uniform = ((int.from_bytes(hasher.digest(), "big") >> 12) + 0.5) / 2.0**52
    return -math.log(uniform) / weight


def _load(entry: tuple[Candidate, float, float]) -> float:
    _, sessions, weight = entry
    return sessions / weight
