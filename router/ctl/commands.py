"""``ctl`` and ``top``: arguments. What they need is imported when they run; loading this costs next to nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from router.ctl.target import Target

DEFAULT_URL = "http://127.0.0.1:4000"
F = TypeVar("F", bound=Callable[..., None])


def _where(function: F) -> Callable[..., None]:
    """Options that say which router."""

    @click.option(
        "--url", default=DEFAULT_URL, show_default=True, envvar="REALTIME_ROUTER_URL", show_envvar=True, help="The router."
    )
    @click.option("--key", envvar="REALTIME_ROUTER_KEY", show_envvar=True, help="Its master key; other users see arguments.")
    @click.option("--ca-file", metavar="FILE", help="PEM file of the authority that signed its certificate.")
    @wraps(function)
    def wrapped(**given: Any) -> None:
        context = click.get_current_context()
        # Those before the command's name: they win over the environment, and give way to those behind it.
        for name, value in (context.obj or {}).items():
            if value is not None and context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
                given[name] = value
        target = Target(**{name: given.pop(name) for name in ("url", "key", "ca_file")}, as_json=given.pop("as_json", False))
        function(target, **given)

    return wrapped


def _target(function: F) -> Callable[..., None]:
    return click.option("--json", "as_json", is_flag=True, help="The router's answer as it comes.")(_where(function))


def _watched(function: Callable[..., None]) -> Callable[..., None]:
    """Options that show it again and again."""

    @click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C; with --json a line each time.")
    @click.option(
        "--every", default=2.0, show_default=True, type=click.FloatRange(0.1, 3600), help="Seconds between, with --watch."
    )
    @wraps(function)
    def wrapped(watch: bool, every: float, **more: Any) -> None:
        function(every_s=every if watch else None, **more)

    return wrapped


def _limit(default: int) -> Callable[[F], F]:
    text = "Most entries to show."
    return click.option("--limit", default=default, show_default=True, type=click.IntRange(1, 1000), help=text)


def _show(target: Target, table: str, *path: str, query: Mapping[str, Any] | None = None, every_s: float | None = None) -> None:
    from router.ctl.run import run

    sys.exit(run(target, table, lambda client: client.get(*path, query=query), every_s=every_s))


def _do(target: Target, table: str, *path: str, **body: Any) -> None:
    from router.ctl.run import run

    sys.exit(run(target, table, lambda client: client.post(*path, body=body)))


@click.group()
@click.option("--url", help="The router; here or behind the command.")
@click.option("--key", help="Its master key, likewise.")
@click.option("--ca-file", metavar="FILE", help="Who signed its certificate, likewise.")
@click.pass_context
def ctl(context: click.Context, /, **given: str | None) -> None:
    """See and change a running router, by its admin API.

    Exit codes: 0 done, 1 refused or unreachable, 2 wrong usage.
    """
    context.obj = given


# --- see -----------------------------------------------------------------------------------------


@ctl.command()
@_watched
@_target
def deployments(target: Target, every_s: float | None) -> None:
    """Groups and deployments with their state."""
    _show(target, "deployments", "deployments", every_s=every_s)


@ctl.command()
@click.option("--group", help="Only this group's.")
@click.option("--deployment", help="Only those on this deployment.")
@click.option("--principal", help="Only those of the key of this name.")
@click.option("--search", help="Only those with this in their id, client, key or deployment.")
@_limit(50)
@_watched
@_target
def sessions(target: Target, every_s: float | None, **query: Any) -> None:
    """Sessions under way, the newest first."""
    _show(target, "sessions", "sessions", query=query, every_s=every_s)


@ctl.command()
@click.argument("session")
@_watched
@_target
def session(target: Target, session: str, every_s: float | None) -> None:
    """One SESSION, under way or ended lately, with its attempts and decisions."""
    _show(target, "session", "sessions", session, every_s=every_s)


@ctl.command()
@click.option("--group", help="Only about this group.")
@click.option("--deployment", help="Only about this deployment.")
@click.option("--session", help="Only about this session.")
@_limit(20)
@_watched
@_target
def decisions(target: Target, every_s: float | None, **query: Any) -> None:
    """Why sessions went where they went, the newest first."""
    _show(target, "decisions", "decisions", query=query, every_s=every_s)


@ctl.command()
@_watched
@_target
def config(target: Target, every_s: float | None) -> None:
    """The configuration's generation, and what came of the last reload."""
    _show(target, "config", "config", every_s=every_s)


@ctl.command()
@_watched
@_target
def fleet(target: Target, every_s: float | None) -> None:
    """The router's processes, and what it is among others."""
    _show(target, "fleet", "fleet", every_s=every_s)


# --- do ------------------------------------------------------------------------------------------


@ctl.command()
@click.argument("id")
@_target
def drain(target: Target, id: str) -> None:
    """Let the deployment ID take no new sessions; those that run go on."""
    _do(target, "deployment", "deployments", "set", id=id, state="drain")


@ctl.command()
@click.argument("id")
@_target
def maint(target: Target, id: str) -> None:
    """Take the deployment ID out of service; sessions that run are left alone."""
    _do(target, "deployment", "deployments", "set", id=id, state="maint")


@ctl.command()
@click.argument("id")
@_target
def ready(target: Target, id: str) -> None:
    """Let the deployment ID take sessions, whatever the file says."""
    _do(target, "deployment", "deployments", "set", id=id, state="ready")


@ctl.command()
@click.argument("id")
@_target
def reset(target: Target, id: str) -> None:
    """Give state and weight of the deployment ID back to the file."""
    _do(target, "deployment", "deployments", "set", id=id, state=None, weight=None)


@ctl.command()
@click.argument("id")
@click.argument("weight", type=click.FloatRange(0, 1e6, min_open=True))
@_target
def weight(target: Target, id: str, weight: float) -> None:
    """Give the deployment ID another WEIGHT."""
    # The range lets "nan" through, which no comparison refuses.
    if weight != weight:
        raise click.UsageError("WEIGHT: found nan, expected a number above 0 and at most 1e+06")
    _do(target, "deployment", "deployments", "set", id=id, weight=weight)


@ctl.command()
@click.argument("id")
@_target
def readmit(target: Target, id: str) -> None:
    """End an ejection and a cool-down of the deployment ID."""
    _do(target, "deployment", "deployments", "readmit", id=id)


@ctl.command()
@click.argument("session")
@click.option("--code", default=1001, show_default=True, help="Close code for the client: 1000 to 1014, or 3000 to 4999.")
@click.option("--reason", default="", help="Close reason for the client.")
@_target
def end(target: Target, session: str, code: int, reason: str) -> None:
    """End a SESSION: its client gets an error event and a close code."""
    _do(target, "ended", "sessions", session, "end", code=code, reason=reason)


@ctl.command()
@_target
def reload(target: Target) -> None:
    """Read the configuration again; exit 1 with all that is wrong with it when it is refused."""
    _do(target, "config", "reload")


@click.command()
@click.option("--once", is_flag=True, help="One picture on standard output, for scripts; rates are not known then.")
@_where
def top(target: Target, once: bool) -> None:
    """A live picture of a router: groups, deployments, sessions, rates. Ctrl-C ends it."""
    from router.ctl.screen import run

    sys.exit(run(target, once=once))
