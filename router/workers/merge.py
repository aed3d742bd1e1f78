"""What several workers say of themselves, as one: their metrics (``router.admin.merge`` has the views of operators). Pure.

Counters and histograms are summed over the workers that live and those that are gone, so that what was shown once never falls.
Gauges tell of now: of those that live, by the rule of ``GAUGES``. Where a sum is nonsense and nothing else is right either, a
gauge is left out. Metrics travel as plain JSON (``pack``): families of name, text, kind, and samples of name, labels, value.

Of a process' own series (``process_``, ``python_``) counters are sums as well, the parent's included. Resident and virtual memory
are sums that count pages which processes share once for each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final, Literal

from prometheus_client.metrics_core import Metric

Rule = Literal["sum", "mean", "max", "min", "left out"]
# Families as they travel: [name, text, kind, [[sample's name, labels, value], …]].
Packed = Sequence[Sequence[Any]]

_PREFIX: Final = "realtime_router_"
_ADDED_UP: Final = frozenset({"counter", "histogram"})
_SHOWN: Final = frozenset({"gauge", "info"})
#: A gauge that is not in ``GAUGES``.
DEFAULT_RULE: Final[Rule] = "sum"

#: Gauge (an info is one, as it is exported) → what becomes of the workers' values.
GAUGES: Final[Mapping[str, Rule]] = {
    # Each holds its own.
    f"{_PREFIX}sessions_active": "sum",
    f"{_PREFIX}deployment_sessions": "sum",
    f"{_PREFIX}deployment_limit_used": "sum",
    # Each says 1.
    f"{_PREFIX}workers": "sum",
    # The share of the processes that see a deployment in that state.
    f"{_PREFIX}deployment_state": "mean",
    f"{_PREFIX}fleet_mode": "mean",
    # Averages of alike samples: sessions are spread at random.
    f"{_PREFIX}deployment_ready_seconds": "mean",
    f"{_PREFIX}deployment_first_audio_seconds": "mean",
    # The same in all but for the moment of a reload; or what is worst for the deployment.
    f"{_PREFIX}deployment_info": "max",
    f"{_PREFIX}deployment_max_sessions": "max",
    f"{_PREFIX}deployment_limit_max": "max",
    f"{_PREFIX}deployment_weight": "max",
    f"{_PREFIX}deployment_failures_in_a_row": "max",
    f"{_PREFIX}deployment_ejected_seconds": "max",
    f"{_PREFIX}build_info": "max",
    f"{_PREFIX}config_generation": "max",
    f"{_PREFIX}config_restart_needed": "max",
    f"{_PREFIX}config_last_reload_success_timestamp_seconds": "max",
    # One that refused the last configuration is one too many.
    f"{_PREFIX}config_last_reload_successful": "min",
    f"{_PREFIX}fleet_members": "max",
    # All of them, or one by itself.
    f"{_PREFIX}draining": "max",
    # The oldest.
    f"{_PREFIX}fleet_picture_age_seconds": "max",
    # The other workers' sessions are in it, and in the sum of ``deployment_sessions`` as well.
    f"{_PREFIX}deployment_sessions_elsewhere": "left out",
    "python_info": "max",
    "process_virtual_memory_bytes": "sum",
    "process_resident_memory_bytes": "sum",
    "process_open_fds": "sum",
    # Beside the sum of those that are open.
    "process_max_fds": "sum",
    # When the router was started; the parent's.
    "process_start_time_seconds": "min",
}


# --- metrics -------------------------------------------------------------------------------------


def pack(metrics: Iterable[Metric]) -> list[list[Any]]:
    """Return metrics as plain JSON."""
    return [
        [
            metric.name,
            metric.documentation,
            metric.type,
            # JSON has no infinity; the text of a float is one that ``float`` reads.
            [[name, labels, value if math.isfinite(value) else repr(value)] for name, labels, value, *_ in metric.samples],
        ]
        for metric in metrics
    ]


def merge(live: Sequence[Packed], gone: Sequence[Packed]) -> Iterator[Metric]:
    """Yield one family after the other, in the order in which they were first seen.

    Args:
        live: packed metrics of workers that answered.
        gone: those of workers that did not: their counters and histograms alone count.
    """
    return (metric for metric in merge_in_slices(live, gone) if metric is not None)


def merge_in_slices(live: Sequence[Packed], gone: Sequence[Packed]) -> Iterator[Metric | None]:
    """Do what ``merge`` does, and yield ``None`` now and then, so that the caller can attend to others: it may take long."""
    for family in _merged(live, gone):
        if family is None:
            yield None
            continue
        name, text, kind, samples = family
        metric = Metric(name, text, kind)
        for sample, labels, value in samples:
            metric.add_sample(sample, labels, value)
        yield metric


def fold(gone: Sequence[Packed]) -> list[list[Any]]:
    """Return the counters and histograms of several as packed metrics of one."""
    return [
        [name, text, kind, [[sample, labels, value] for sample, labels, value in samples]]
        for name, text, kind, samples in filter(None, _merged((), gone))
    ]


def counter(name: str, text: str, values: Iterable[tuple[Mapping[str, str], float]]) -> list[list[Any]]:
    """Return a counter as packed metrics.

    Args:
        name: without ``_total``.
        text: its description.
        values: labels and value of each sample.
    """
    return [[name, text, "counter", [[f"{name}_total", dict(labels), value] for labels, value in values]]]


_Sample = tuple[str, dict[str, str], float]
# Text, kind, and samples as they came.
_Family = tuple[str, str, Sequence[Any]]


# Between two chances for the caller to do something else; a millisecond or two.
_SLICE_SAMPLES: Final = 400


def _merged(live: Sequence[Packed], gone: Sequence[Packed]) -> Iterator[tuple[str, str, str, list[_Sample]] | None]:
    now, before = [_by_name(one) for one in live], [_by_name(one) for one in gone]
    # A dictionary keeps the order of first sight.
    names = dict.fromkeys(name for families in (*now, *before) for name in families)
    for name in names:
        living = [families[name] for families in now if name in families]
        dead = [families[name] for families in before if name in families]
        text, kind, _ = (living or dead)[0]
        members = [*living, *dead] if kind in _ADDED_UP else living
        # One name is of one kind, or one of those who say it does not know what it says.
        samples = [member[2] for member in members if member[1] == kind]
        rule = _rule(name, kind)
        if rule != "left out" and (kind in _ADDED_UP or (kind in _SHOWN and samples)):
            brought = _Brought(rule)
            for count, sample in enumerate(chain.from_iterable(samples), 1):
                brought.add(sample)
                if count % _SLICE_SAMPLES == 0:
                    yield None
            yield name, text, kind, brought.samples()


def _rule(name: str, kind: str) -> Rule:
    if kind in _ADDED_UP:
        return "sum"
    return GAUGES.get(f"{name}_info" if kind == "info" else name, DEFAULT_RULE)


class _Brought:
    """Samples of one family, those of the same name and labels brought together by a rule."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        # Name and labels → these, the value so far, and of how many.
        self._found: dict[tuple[str, frozenset[tuple[str, str]]], list[Any]] = {}

    def add(self, sample: Any) -> None:
        """Take one more; what is no sample is left out."""
        if (checked := _sample(sample)) is None:
            return
        name, labels, value = checked
        key = (name, frozenset(labels.items()))
        held = self._found.get(key)
        if held is None:
            self._found[key] = [name, labels, value, 1]
            return
        held[3] += 1
        if self._rule == "max":
            held[2] = max(held[2], value)
        elif self._rule == "min":
            held[2] = min(held[2], value)
        else:
            held[2] += value

    def samples(self) -> list[_Sample]:
        """What came of them, in the order of first sight."""
        mean = self._rule == "mean"
        return [(name, labels, value / count if mean else value) for name, labels, value, count in self._found.values()]


def _by_name(packed: Packed) -> dict[str, _Family]:
    """The families of one process; what is none is left out."""
    families: dict[str, _Family] = {}
    for family in packed:
        if isinstance(family, Sequence) and len(family) == 4:
            name, text, kind, samples = family
            if isinstance(name, str) and isinstance(text, str) and isinstance(kind, str) and isinstance(samples, Sequence):
                families[name] = (text, kind, samples)
    return families


def _sample(sample: Any) -> _Sample | None:
    if not isinstance(sample, Sequence) or len(sample) != 3:
        return None
    name, labels, value = sample
    if not isinstance(name, str) or not isinstance(labels, dict) or not all(type(label) is str for label in labels.values()):
        return None
    if type(value) in (int, float):
        return name, labels, value
    try:
        return (name, labels, float(value)) if isinstance(value, str) else None
    except ValueError:
        return None
