"""Strategies: how a deployment is chosen among those that are eligible. One file an algorithm, ``base`` is the contract.

Nothing here imports the router, does I/O, or needs a third-party package: a strategy can be developed and simulated alone
(``strategies.testing``). The imports below are the list of built-ins; after them the table is closed.
"""

from strategies import (
    affinity,
    fastest,
    first,
    least_connections,
    p2c,
    round_robin,
    shared_least_connections,
    shared_round_robin,
    usage,
    weighted_random,
)
from strategies.base import NOWHERE, Call, Candidate, Elsewhere, Freshness, Promise, Strategy, is_shared, options_of, promises_of
from strategies.registry import (
    ALIASES,
    DEFAULT,
    InvalidStrategy,
    StrategyError,
    StrategyNotAvailable,
    UnknownStrategy,
    canonical_name,
    close,
    get,
    known_names,
)

close()

__all__ = [
    "ALIASES",
    "DEFAULT",
    "NOWHERE",
    "Call",
    "Candidate",
    "Elsewhere",
    "Freshness",
    "InvalidStrategy",
    "Promise",
    "Strategy",
    "StrategyError",
    "StrategyNotAvailable",
    "UnknownStrategy",
    "affinity",
    "canonical_name",
    "fastest",
    "first",
    "get",
    "is_shared",
    "known_names",
    "least_connections",
    "options_of",
    "p2c",
    "promises_of",
    "round_robin",
    "shared_least_connections",
    "shared_round_robin",
    "usage",
    "weighted_random",
]
