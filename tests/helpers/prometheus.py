"""A real Prometheus that a test starts, and what a query is made of.

    async with prometheus(require("prometheus"), tmp_path, config) as server:
        await server.until(lambda: ..., "what")
        rows = await server.query('up{job="realtime-router"}')

    used = parse('sum by (group) (rate(realtime_router_fallbacks_total{job="x"}[5m]))')
    assert used.selectors == (Selector("realtime_router_fallbacks_total", (Matcher("job", "=", "x"),)),)
    assert used.labels == {"group"}

``documented`` reads from docs/metrics.md what the router exports, ``Rules`` the rule files of grafana/prometheus.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.helpers.ports import free_port

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "grafana"
RULES = tuple(sorted((GRAFANA / "prometheus" / "rules").glob("*.yml")))
# Longest wait for anything that must happen; only a fault reaches it.
PATIENCE_S = 60.0


# --- what a query is made of --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Matcher:
    """``label op "value"``."""

    label: str
    op: str
    value: str

    @property
    def words(self) -> tuple[str, ...]:
        """The values that it names: those of an alternation one by one, and of these the ones that are no pattern."""
        parts = self.value.split("|") if "~" in self.op else [self.value]
        return tuple(part for part in parts if re.fullmatch(r"[\w-]+", part))


@dataclass(frozen=True, slots=True)
class Selector:
    """A metric's name with its matchers."""

    name: str
    matchers: tuple[Matcher, ...] = ()


@dataclass(frozen=True, slots=True)
class Used:
    """What a query names.

    Attributes:
        selectors: in order, duplicates included.
        labels: that it groups, matches or joins by.
    """

    selectors: tuple[Selector, ...]
    labels: frozenset[str]


_TOKEN = re.compile(
    r"""(?P<space>\s+) | (?P<string>"(?:[^"\\]|\\.)*") | (?P<range>\[[^\]]*\])
      | (?P<number>\d+(?:\.\d+)?(?:e-?\d+)?(?:ms|[smhdwy])?) | (?P<name>[A-Za-z_:][\w:]*)
      | (?P<sign>=~|!~|==|!=|<=|>=|[-+*/%^<>={}(),])""",
    re.VERBOSE,
)
_BY = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
_WORDS = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan"})


def parse(expr: str) -> Used:
    """Return what a query names.

    It knows as much of PromQL as the files under grafana/ need; whether a query is one at all is Prometheus' to say.

    Raises:
        ValueError: a character or an order that it does not know.
    """
    tokens = list(_tokens(expr))
    selectors: list[Selector] = []
    labels: set[str] = set()
    place = 0
    while place < len(tokens):
        kind, text = tokens[place]
        place += 1
        if kind != "name" or text in _WORDS:
            continue
        following = tokens[place][1] if place < len(tokens) else ""
        if text in _BY:
            if following == "(":
                end = _closing(tokens, place, ")")
                labels.update(name for word, name in tokens[place + 1 : end] if word == "name")
                place = end + 1
        elif following == "{":
            end = _closing(tokens, place, "}")
            selectors.append(Selector(text, _matchers(tokens[place + 1 : end])))
            place = end + 1
        elif following != "(" and following not in _BY:
            selectors.append(Selector(text))
    return Used(tuple(selectors), frozenset(labels))


def _tokens(expr: str) -> Iterator[tuple[str, str]]:
    place = 0
    while place < len(expr):
        found = _TOKEN.match(expr, place)
        if found is None or found.lastgroup is None:
            raise ValueError(f"found {expr[place : place + 20]!r}, expected PromQL")
        place = found.end()
        if found.lastgroup not in ("space", "range"):
            yield found.lastgroup, found[0]


def _closing(tokens: list[tuple[str, str]], place: int, sign: str) -> int:
    for index in range(place, len(tokens)):
        if tokens[index] == ("sign", sign):
            return index
    raise ValueError(f"found no {sign!r}, expected one")


def _matchers(tokens: list[tuple[str, str]]) -> tuple[Matcher, ...]:
    words = [text for _, text in tokens if text != ","]
    if len(words) % 3:
        raise ValueError(f"found {words}, expected matchers")
    return tuple(Matcher(words[at], words[at + 1], json.loads(words[at + 2])) for at in range(0, len(words), 3))


# --- what there is ------------------------------------------------------------------------------

# Of every series, whoever exports it.
OF_THE_TARGET = frozenset({"job", "instance"})
_ROW = re.compile(r"^\| `(?P<name>\w+)` \| (?P<kind>\w+) \|(?P<labels>[^|]*)\|", re.MULTILINE)


def documented() -> Mapping[str, frozenset[str]]:
    """Return every series that docs/metrics.md promises, a histogram's three included: name → its labels, the target's too."""
    found: dict[str, frozenset[str]] = {}
    for row in _ROW.finditer((ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")):
        labels = frozenset(re.findall(r"`(\w+)`", row["labels"])) | OF_THE_TARGET
        if row["kind"] == "histogram":
            found |= {f"{row['name']}_bucket": labels | {"le"}, f"{row['name']}_sum": labels, f"{row['name']}_count": labels}
        else:
            found[row["name"]] = labels
    return found


@dataclass(frozen=True, slots=True)
class Rule:
    """A recording rule or an alert.

    Attributes:
        name: what it records, or the alert's.
        expr: PromQL.
        alert: the alert as written, ``None`` for a recording rule.
    """

    name: str
    expr: str
    alert: Mapping[str, Any] | None


def rules() -> tuple[Rule, ...]:
    """Return every rule of grafana/prometheus/rules."""
    documents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in RULES]
    return tuple(
        Rule(rule.get("record") or rule["alert"], rule["expr"], rule if "alert" in rule else None)
        for document in documents
        for group in document["groups"]
        for rule in group["rules"]
    )


_DURATION = re.compile(r"(?<![\w.])(\d+)(ms|[smhd])(?!\w)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def shortened(text: str, factor: float) -> str:
    """Return rules with each ``for:``, range, offset and step divided by a factor. Names and texts of annotations stay."""

    def shorter(found: re.Match[str]) -> str:
        return f"{max(1, round(int(found[1]) * _SECONDS[found[2]] * 1000 / factor))}ms"

    lines = []
    for line in text.splitlines():
        is_time = re.match(r"\s+for: ", line) or re.search(r"\[[^\]]+\]|\boffset \d", line)
        lines.append(_DURATION.sub(shorter, line) if is_time else line)
    return "\n".join(lines) + "\n"


# --- the server ---------------------------------------------------------------------------------

Sample = tuple[Mapping[str, str], list[float]]


class Prometheus:
    """One that runs.

    Args:
        port: of its API, on the loopback.
        http: asks it.
    """

    def __init__(self, port: int, http: aiohttp.ClientSession) -> None:
        self._base = f"http://127.0.0.1:{port}"
        self._http = http

    async def get(self, path: str, **parameters: str | float) -> Any:
        """Return the ``data`` of an answer.

        Raises:
            AssertionError: it refused the request, as it does with a query that is none.
        """
        data = {name: str(value) for name, value in parameters.items()}
        async with self._http.post(f"{self._base}/api/v1/{path}", data=data) as answer:
            document = await answer.json()
        assert document["status"] == "success", f"{parameters}: {document}"
        return document["data"]

    async def query(self, expr: str) -> list[Sample]:
        """Return the series that a query gives now, those that are no number left out."""
        data = await self.get("query", query=expr)
        if data["resultType"] == "scalar":
            return _finite([({}, [data["result"]])])
        return _finite([(row["metric"], [row["value"]]) for row in data["result"]])

    async def query_range(self, expr: str, *, seconds: float, step_s: float = 1.0) -> list[Sample]:
        """Return the series that a query gives in the last seconds, without what is no number."""
        end = time.time()
        data = await self.get("query_range", query=expr, start=end - seconds, end=end, step=step_s)
        return _finite([(row["metric"], row["values"]) for row in data["result"]])

    async def label_values(self, label: str, match: str) -> list[str]:
        """Return the values of a label in the series that match, as a dashboard's variable lists them."""
        async with self._http.get(f"{self._base}/api/v1/label/{label}/values", params={"match[]": match}) as answer:
            document = await answer.json()
        assert document["status"] == "success", document
        return list(document["data"])

    async def labels_of(self, name: str) -> frozenset[str]:
        """Return the labels that the series of a name have; none: there is no such series."""
        data = await self.get("series", **{"match[]": name})
        return frozenset(label for series in data for label in series)

    async def alerts(self, state: str = "firing") -> list[Mapping[str, Any]]:
        """Return the alerts that fire, or are ``pending``."""
        async with self._http.get(f"{self._base}/api/v1/alerts") as answer:
            document = await answer.json()
        return [alert for alert in document["data"]["alerts"] if alert["state"] == state]

    async def until(self, condition: Callable[[], Awaitable[Any]], what: str) -> Any:
        """Wait until a condition holds, and return what it gave.

        Raises:
            AssertionError: it did not hold in time; the text is ``what``.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not (found := await condition()):
            assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S:g} s"
            await asyncio.sleep(0.1)
        return found


def _finite(rows: list[tuple[Mapping[str, str], list[Any]]]) -> list[Sample]:
    read = [(labels, [float(value) for _, value in values]) for labels, values in rows]
    return [(labels, kept) for labels, values in read if (kept := [value for value in values if math.isfinite(value)])]


@asynccontextmanager
async def prometheus(program: str, folder: Path, config: Mapping[str, Any]) -> AsyncIterator[Prometheus]:
    """Run a Prometheus with its files in a folder until the block ends.

    Args:
        program: its path.
        folder: for its configuration and its data.
        config: its configuration.

    Raises:
        AssertionError: it ended, or was not ready in time.
    """
    port = free_port()
    path, log = folder / "prometheus.json", folder / "prometheus.log"
    # JSON is YAML.
    path.write_text(json.dumps(config), encoding="utf-8")
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            program,
            f"--config.file={path}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--storage.tsdb.retention.time=1h",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        async with aiohttp.ClientSession(trust_env=False, timeout=aiohttp.ClientTimeout(total=30)) as http:
            server = Prometheus(port, http)
            await server.until(lambda: _ready(http, port, process), f"Prometheus is ready (its log is {log})")
            yield server
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _ready(http: aiohttp.ClientSession, port: int, process: Process) -> bool:
    assert process.returncode is None, "Prometheus has ended"
    try:
        async with http.get(f"http://127.0.0.1:{port}/-/ready") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False
