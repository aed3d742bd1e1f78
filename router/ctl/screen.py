"""``top``: a router at a glance, once a second. What is shown is computed from two successive views."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from router.ctl.client import Client, CtlError, connected
from router.ctl.run import console, guarded, rendered
from router.ctl.tables import (
    STATE_STYLES,
    attempts_of,
    duration,
    partial,
    session_row,
    sessions_of,
    size,
    table,
    text,
    why_of,
)
from router.ctl.target import Target

_REFRESH_S: Final = 1.0
# Sessions that are asked for: more than a screen shows, so that rates are of nearly all.
_SESSIONS: Final = 200
# Where nobody looks at lines, nothing is left out.
_LINES_OF_FILES: Final = 10_000
_HEAD_LINES: Final = 3
_TABLE_LINES: Final = 2  # a table's head, and the line under it
# Columns, and those of them that a narrow screen has no room for.
_DEPLOYMENT_COLUMNS: Final = ("group", "deployment", "state", "sessions", "ready", "audio", "ok/s", "fail/s", "why")
_SESSION_COLUMNS: Final = ("session", "group", "deployment", "key", "client", "phase", "for", "turns", "in", "out")
_NUMBERS: Final = frozenset({"sessions", "ready", "audio", "ok/s", "fail/s", "for", "turns", "in", "out"})
_WIDE_ONLY: Final = frozenset({"group", "audio", "client", "in", "out"})
_NARROW_COLUMNS: Final = 110


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a router said at one moment.

    Attributes:
        at: monotonic seconds.
        deployments, sessions, config: its documents.
    """

    at: float
    deployments: Mapping[str, Any]
    sessions: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def by_id(self) -> dict[str, Mapping[str, Any]]:
        """Every deployment."""
        return {one["id"]: one for group in self.deployments["groups"] for one in group["deployments"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Changes a second between two samples.

    Attributes:
        ready, failed: dials that ended, by deployment.
        client_bytes, upstream_bytes: of the sessions that are shown.
    """

    ready: Mapping[str, float]
    failed: Mapping[str, float]
    client_bytes: float
    upstream_bytes: float


def rates(before: Sample, after: Sample) -> Rates | None:
    """Return what changed a second; ``None``: no time has passed.

    Counters that fell belong to a process that began anew: what it has is what is new.
    """
    seconds = after.at - before.at
    if seconds <= 0:
        return None
    then = before.by_id
    ready: dict[str, float] = {}
    failed: dict[str, float] = {}
    for id, one in after.by_id.items():
        now = attempts_of(one)
        # One that was not there then has counted from nothing.
        old = attempts_of(then[id]) if id in then else (0, 0)
        ready[id], failed[id] = (_grown(was, value) / seconds for was, value in zip(old, now, strict=True))
    known = {one["session"]: one for one in before.sessions["sessions"]}
    grown = {"client_bytes": 0.0, "upstream_bytes": 0.0}
    for session in after.sessions["sessions"]:
        for name in grown:
            grown[name] += _grown(known.get(session["session"], {}).get(name, 0), session[name])
    return Rates(
        ready=ready,
        failed=failed,
        client_bytes=grown["client_bytes"] / seconds,
        upstream_bytes=grown["upstream_bytes"] / seconds,
    )


def _grown(was: float, value: float) -> float:
    return value - was if value >= was else value


# --- the picture ---------------------------------------------------------------------------------


def picture(sample: Sample, change: Rates | None, *, where: str, width: int, height: int, error: str = "") -> RenderableType:
    """What is on the screen.

    Args:
        sample: the last one.
        change: since the one before.
        where: the router's address.
        width, height: columns and lines that there are.
        error: why there is no newer sample.
    """
    notes = _notes(sample, error)
    # An empty line stands between the two tables.
    room = height - _HEAD_LINES - len(notes) - 2 * _TABLE_LINES - 1
    deployments = [(group["group"], one) for group in sample.deployments["groups"] for one in group["deployments"]]
    sessions: Sequence[Mapping[str, Any]] = sample.sessions["sessions"]
    # Deployments come first, but leave a third of the room to sessions where there are such.
    most = max(1, room - min(len(sessions) + 1, max(1, room // 3)))
    shown, hidden = _cut(deployments, most)
    rows = [_deployment_row(name, one, change) for name, one in deployments]
    parts: list[RenderableType] = [*_head(sample, change, where), *notes, _table(_DEPLOYMENT_COLUMNS, rows[:shown], width)]
    used = shown
    if hidden:
        parts.append(Text(f"… and {hidden} more deployments", style="dim"))
        used += 1
    parts.append(Text(""))
    listed, unlisted = _cut(sessions, max(1, room - used))
    parts.append(_table(_SESSION_COLUMNS, [session_row(one) for one in sessions[:listed]], width))
    if unlisted:
        parts.append(Text(f"… and {sample.sessions['total'] - listed} more sessions", style="dim"))
    return Group(*parts)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Text]], width: int) -> RenderableType:
    shown = [index for index, name in enumerate(columns) if width >= _NARROW_COLUMNS or name not in _WIDE_ONLY]
    return table([columns[index] for index in shown], [[row[index] for index in shown] for row in rows], right=_NUMBERS)


def _cut(items: Sequence[Any], most: int) -> tuple[int, int]:
    """How many are shown and how many are not, when a line about the latter takes a place."""
    if len(items) <= most:
        return len(items), 0
    shown = max(0, most - 1)
    return shown, len(items) - shown


def _head(sample: Sample, change: Rates | None, where: str) -> list[Text]:
    phases = {name: sum(one["phase"] == name for one in sample.sessions["sessions"]) for name in ("waiting", "turn")}
    first = Text.assemble(
        ("realtime-router ", "bold"),
        text(where),
        text(f"  generation {sample.deployments['generation']}  {time.strftime('%H:%M:%S')}"),
        no_wrap=True,
        overflow="ellipsis",
    )
    second = Text.assemble(
        text(f"{sample.sessions['total']} sessions", "bold"),
        f" ({phases['waiting']} waiting, {phases['turn']} in a turn)",
        _rate_text(change),
        no_wrap=True,
        overflow="ellipsis",
    )
    return [first, second, Text("")]


def _rate_text(change: Rates | None) -> str:
    if change is None:
        return ""
    ready, failed = sum(change.ready.values()), sum(change.failed.values())
    moved = f"in {size(change.client_bytes)}/s  out {size(change.upstream_bytes)}/s"
    return f"  {ready:.1f} ok/s  {failed:.1f} fail/s  {moved}"


def _notes(sample: Sample, error: str) -> list[Text]:
    lines: list[Text] = []
    if error:
        lines.append(text(error.splitlines()[0], "bold red"))
    last = sample.config["last_reload"]
    if not last["successful"]:
        count = len(last["errors"])
        lines.append(text(f"the last reload was refused: {count} problem{'s' * (count != 1)}; ctl config shows all", "red"))
    if sample.config["restart_needed"]:
        lines.append(text(f"a restart is needed for {', '.join(sample.config['restart_needed'])}", "yellow"))
    fleet = sample.deployments["fleet"]
    if fleet is not None:
        lines.append(text(f"fleet: {fleet['members']} members, {fleet['mode']}", "" if fleet["mode"] == "fresh" else "yellow"))
    for one in partial(sample.deployments):
        if isinstance(one, Text):
            lines.append(one)
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return lines


def _deployment_row(group: str, one: Mapping[str, Any], change: Rates | None) -> Sequence[Text]:
    ready = failed = Text("")
    if change is not None:
        ready = Text(f"{change.ready.get(one['id'], 0.0):.1f}")
        failures = change.failed.get(one["id"], 0.0)
        failed = Text(f"{failures:.1f}", style="red" if failures else "")
    return (
        text(group),
        text(one["id"]),
        text(one["state"], STATE_STYLES.get(one["state"], "")),
        sessions_of(one),
        duration(one["ready_s"]),
        duration(one["first_audio_s"]),
        ready,
        failed,
        text(why_of(one)),
    )


# --- the loop ------------------------------------------------------------------------------------


def run(target: Target, *, once: bool) -> int:
    """Show it until Ctrl-C, or once. Returns the exit code: 0 done, 1 refused or unreachable, 2 wrong usage."""
    return guarded(_run(target, once))


async def _run(target: Target, once: bool) -> None:
    out = console()
    if not once and not out.is_terminal:
        raise CtlError("top needs a terminal; --once prints one picture anywhere", usage=True)
    async with connected(target.url, key=target.key, ca_file=target.ca_file) as client:
        # What cannot be had at first is no picture at all, and is told as that.
        first = await _sample(client)
        if once:
            out.print(_picture(first, None, client, out.width, out.height if out.is_terminal else _LINES_OF_FILES))
            return
        await _live(client, out, first)


async def _live(client: Client, out: Console, first: Sample) -> None:
    task = cast("asyncio.Task[None]", asyncio.current_task())
    # The terminal is to be left as it was found, whoever ends this. Ctrl-C is ``asyncio.run``'s own.
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    last: Sample = first
    change: Rates | None = None
    error = ""
    with Live(console=out, screen=True, auto_refresh=False) as live:
        while True:
            live.update(_picture(last, change, client, out.width, out.height, error), refresh=True)
            await asyncio.sleep(_REFRESH_S)
            try:
                new = await _sample(client)
                change = _rates(last, new)
            except CtlError as failure:
                error = str(failure)
            else:
                last, error = new, ""


def _rates(last: Sample, new: Sample) -> Rates | None:
    def make(_: Mapping[str, Any]) -> Rates | None:
        return rates(last, new)

    return rendered(make, {})


def _picture(
    sample: Sample, change: Rates | None, client: Client, width: int, height: int, error: str = ""
) -> RenderableType:
    def make(_: Mapping[str, Any]) -> RenderableType:
        return picture(sample, change, where=client.where, width=width, height=height, error=error)

    return rendered(make, {})


async def _sample(client: Client) -> Sample:
    deployments = await client.get("deployments")
    sessions = await client.get("sessions", query={"limit": _SESSIONS})
    config = await client.get("config")
    return Sample(at=time.monotonic(), deployments=deployments, sessions=sessions, config=config)
