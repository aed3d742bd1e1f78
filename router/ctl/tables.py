"""Documents of the admin API as tables for a terminal. What stands in them is never taken for markup or control codes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from router.config.source import printable

#: State of a deployment → colour.
STATE_STYLES: Final[Mapping[str, str]] = {
    "admitting": "green",
    "probing": "yellow",
    "cooling_down": "yellow",
    "draining": "cyan",
    "maint": "cyan",
    "ejected": "red",
    "misconfigured": "red",
}
_MOST_CHARS: Final = 200
# Columns of one short word or id, of which a part would be of no use.
_WORDS: Final = frozenset({"session", "state", "phase", "at", "dial", "outcome", "after", "serving"})

Row = Sequence[Text]
Document = Mapping[str, Any]


def text(value: object, style: str = "") -> Text:
    """A value as it may stand in a cell; nothing for ``None``."""
    return Text("" if value is None else printable(str(value), _MOST_CHARS), style=style)


def number(value: object, digits: int = 0) -> Text:
    """A number in thousands, or nothing."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return Text("")
    return Text(f"{value:,.{digits}f}")


def duration(seconds: object) -> Text:
    """Seconds for people: 0.35 s, 12 s, 3:07, 2:03:09."""
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return Text("")
    if seconds < 10:
        return Text(f"{seconds:.2f} s")
    whole = int(seconds)
    if whole < 60:
        return Text(f"{whole} s")
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return Text(f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}")


def size(count: object) -> Text:
    """Bytes for people."""
    if not isinstance(count, int | float) or isinstance(count, bool):
        return Text("")
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return Text(f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}")
        value /= 1024
    return Text(f"{value:.1f} GiB")


def clock(moment: object) -> Text:
    """Epoch seconds as the local time of day."""
    if not isinstance(moment, int | float):
        return Text("")
    try:
        return Text(time.strftime("%H:%M:%S", time.localtime(moment)))
    except (OverflowError, ValueError, OSError):
        return Text("")


def table(columns: Iterable[str], rows: Iterable[Row], *, title: str | None = None, right: frozenset[str] = frozenset()) -> Table:
    """A table.

    Args:
        columns: their heads.
        rows: as many cells as columns each.
        title: above it.
        right: columns of numbers.
    """
    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        # rich takes room away from columns that may wrap before any other; their cells are cut off instead.
        fixed = column in right or column in _WORDS
        made.add_column(column, justify="right" if column in right else "left", overflow="ellipsis", no_wrap=fixed)
    for row in rows:
        for cell in row:
            cell.no_wrap, cell.overflow = True, "ellipsis"
        made.add_row(*row)
    return made


# --- deployments ---------------------------------------------------------------------------------

_DEPLOYMENT_COLUMNS: Final = ("deployment", "state", "sessions", "weight", "ready", "audio", "ok", "failed", "why")
_DEPLOYMENT_NUMBERS: Final = frozenset({"sessions", "weight", "ready", "audio", "ok", "failed"})


def sessions_of(deployment: Document) -> Text:
    """Held sessions against their limit."""
    most = deployment["max_sessions"]
    held = f"{deployment['sessions']}" + (f"/{most}" if most is not None else "")
    return text(held, "yellow" if most is not None and deployment["sessions"] >= most else "")


def why_of(deployment: Document) -> str:
    """What explains its state, in a few words."""
    words = []
    if deployment["removed"]:
        words.append("gone from the file")
    override = deployment["override"]
    if override["state"] is not None or override["weight"] is not None:
        said = [] if override["state"] is None else [str(override["state"])]
        said += [] if override["weight"] is None else [f"weight {override['weight']:g}"]
        words.append(f"by operator: {' and '.join(said)}")
    if deployment["reason"]:
        words.append(str(deployment["reason"]))
    if deployment["obstacle"] and deployment["obstacle"] != deployment["state"]:
        words.append(str(deployment["obstacle"]))
    wait = deployment["ejected_s"] if deployment["ejected_s"] is not None else deployment["available_in_s"]
    if wait:
        words.append(f"{duration(wait)} left")
    return ", ".join(words)


def attempts_of(deployment: Document) -> tuple[int, int]:
    """Dials that ended ready, and those that failed."""
    attempts: Mapping[str, int] = deployment["attempts"]
    ready = attempts.get("ready", 0)
    return ready, sum(attempts.values()) - ready - attempts.get("client_gone", 0)


def deployment_row(deployment: Document) -> Row:
    """One of ``deployments``."""
    ready, failed = attempts_of(deployment)
    return (
        text(deployment["id"]),
        text(deployment["state"], STATE_STYLES.get(deployment["state"], "")),
        sessions_of(deployment),
        text(f"{deployment['weight']:g}"),
        duration(deployment["ready_s"]),
        duration(deployment["first_audio_s"]),
        number(ready),
        Text(f"{failed:,}", style="red" if failed else ""),
        text(why_of(deployment)),
    )


def deployments(document: Document) -> RenderableType:
    """``GET /admin/deployments``."""
    parts: list[RenderableType] = []
    for group in document["groups"]:
        named = [f"{group['group']}"]
        for what in ("aliases", "fallbacks"):
            if group[what]:
                named.append(f"{what} {', '.join(group[what])}")
        title = printable(f"{', '.join(named)} ({group['strategy']})", _MOST_CHARS)
        parts.append(Text(title, style="bold"))
        rows = [deployment_row(one) for one in group["deployments"]]
        parts.append(table(_DEPLOYMENT_COLUMNS, rows, right=_DEPLOYMENT_NUMBERS))
    parts += partial(document)
    return Group(*parts)


def deployment(document: Document) -> RenderableType:
    """One deployment after an act."""
    return table(_DEPLOYMENT_COLUMNS, [deployment_row(document["deployment"])], right=_DEPLOYMENT_NUMBERS)


def partial(document: Document) -> list[RenderableType]:
    """A line about workers that did not answer, if there are any."""
    silent = [str(worker["worker"]) for worker in document.get("workers", ()) if not worker.get("answered", True)]
    return [text(f"not in these numbers: worker {', '.join(silent)}, which did not answer", "yellow")] if silent else []


# --- sessions ------------------------------------------------------------------------------------

_SESSION_COLUMNS: Final = ("session", "group", "deployment", "key", "client", "phase", "for", "turns", "in", "out")
_SESSION_NUMBERS: Final = frozenset({"for", "turns", "in", "out"})


def session_row(session: Document) -> Row:
    """One of ``sessions``."""
    return (
        text(session["session"]),
        text(session["group"]),
        text(session["deployment"]),
        text(session["principal"]),
        text(session["client"]),
        text(session["phase"], {"turn": "green", "waiting": "yellow"}.get(session["phase"], "")),
        duration(session["seconds"]),
        number(session["turns"]),
        size(session["client_bytes"]),
        size(session["upstream_bytes"]),
    )


def sessions(document: Document) -> RenderableType:
    """``GET /admin/sessions``."""
    shown, total = len(document["sessions"]), document["total"]
    made = table(_SESSION_COLUMNS, map(session_row, document["sessions"]), right=_SESSION_NUMBERS)
    count = f"{total} session{'s' * (total != 1)}" + (f", the newest {shown} of them" if shown < total else "")
    return Group(made, text(count, "dim"), *partial(document))


def session(document: Document) -> RenderableType:
    """``GET /admin/sessions/{session}``."""
    ended = document["ended"]
    facts: list[tuple[str, Text]] = [
        ("session", text(document["session"])),
        ("group", text(document["group"])),
        ("deployment", text(document["deployment"])),
        ("key", text(document["principal"])),
        ("client", text(document["client"])),
        ("began", clock(document["began_at"])),
        ("for", duration(document["seconds"])),
        ("phase", text(document["phase"])),
        ("ready after", duration(document["ready_s"])),
        ("turns", number(document["turns"])),
        ("first audio", duration(document["first_audio_s"])),
        ("from client", Text(f"{document['client_events']:,} events, {size(document['client_bytes'])}")),
        ("from upstream", Text(f"{document['upstream_events']:,} events, {size(document['upstream_bytes'])}")),
        ("usage", text(", ".join(f"{name} {value:g}" for name, value in document["usage"].items()))),
        ("generation", number(document["generation"])),
    ]
    if ended is not None:
        code = ended["client_code"] if ended["client_code"] is not None else f"HTTP {ended['status']}"
        facts.append(("ended", text(f"by the {ended['who']} ({ended['cause']}) in phase {ended['phase']}, {code}", "yellow")))
        if ended["upstream_reason"]:
            facts.append(("upstream said", text(ended["upstream_reason"])))
    grid = Table.grid(padding=(0, 2))
    for name, value in facts:
        grid.add_row(Text(name, style="dim"), value)
    attempts = table(
        ("deployment", "outcome", "after", "detail"),
        [
            (
                text(one["deployment"]),
                text(one["outcome"], "green" if one["outcome"] == "ready" else "red"),
                duration(one["seconds"]),
                text(one["detail"]),
            )
            for one in document["attempts"]
        ],
        title="attempts",
    )
    return Group(grid, attempts, decisions({"decisions": document["decisions"]}, title="decisions"))


# --- decisions, configuration, fleet -------------------------------------------------------------


def decisions(document: Document, *, title: str | None = None) -> RenderableType:
    """``GET /admin/decisions``."""
    rows = [
        (
            clock(one["at"]),
            text(one["session"]),
            text(one["in_group"] or one["group"]),
            text(one["attempt"]),
            text(one["chosen"] or "nothing", "" if one["chosen"] else "red"),
            text(one["why"]),
            text(" ".join(f"{candidate['id']}={candidate['sessions']}" for candidate in one["candidates"])),
            text(", ".join(f"{passed['id']} ({passed['reason']})" for passed in one["passed_over"])),
        )
        for one in document["decisions"]
    ]
    columns = ("at", "session", "group", "dial", "chosen", "why", "candidates=sessions", "passed over")
    return Group(table(columns, rows, title=title), *partial(document))


def config(document: Document) -> RenderableType:
    """``GET /admin/config``."""
    last = document["last_reload"]
    grid = Table.grid(padding=(0, 2))
    facts: list[tuple[str, Text]] = [
        ("generation", number(document["generation"])),
        ("file", text(document["file"])),
        ("loaded", clock(document["loaded_at"])),
        ("watching", text("yes" if document["watching"] else "no")),
        ("restart needed", text(", ".join(document["restart_needed"]) or "no", "yellow" if document["restart_needed"] else "")),
        (
            "last reload",
            text(
                f"{clock(last['at'])} by {last['trigger']}: {'accepted' if last['successful'] else 'refused'}",
                "" if last["successful"] else "red",
            ),
        ),
    ]
    for name, value in facts:
        grid.add_row(Text(name, style="dim"), value)
    problems = [Text(printable(str(one["text"]), 500), style="red") for one in last["errors"]]
    problems += [Text(f"warning: {printable(str(one['text']), 500)}", style="yellow") for one in last["warnings"]]
    return Group(grid, *problems)


def fleet(document: Document) -> RenderableType:
    """``GET /admin/fleet``."""
    parts: list[RenderableType] = []
    joined = document["fleet"]
    if joined is None:
        parts.append(Text("no fleet: this router balances by its own counts"))
    else:
        age = "never" if joined["picture_age_s"] is None else f"{duration(joined['picture_age_s'])} ago"
        parts.append(
            text(f"member {joined['member']} of {joined['members']}, {joined['mode']}, the others last heard of {age}")
        )
    if document["draining"]:
        parts.append(Text("draining: no new sessions", style="yellow"))
    rows = [
        (text(worker["worker"]), text(worker["pid"]), number(worker["sessions"]), text("yes" if worker["serving"] else "no"))
        for worker in document["workers"]
    ]
    parts.append(table(("worker", "pid", "sessions", "serving"), rows, right=frozenset({"worker", "pid", "sessions"})))
    return Group(*parts)


def ended(document: Document) -> RenderableType:
    """``POST /admin/sessions/{session}/end``."""
    return text(f"{document['session']}: ending")


TABLES: Final[Mapping[str, Callable[[Document], RenderableType]]] = {
    "deployments": deployments,
    "deployment": deployment,
    "sessions": sessions,
    "session": session,
    "decisions": decisions,
    "config": config,
    "fleet": fleet,
    "ended": ended,
}
