"""Generations of the configuration: which of a new one can be in force, and what an operator is told of it. Pure.

A generation is the whole of a file that was found right. What belongs to the process rather than to sessions cannot change while
it runs: those keys keep their values, and are named as waiting for a restart; all else is in force at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from router.config.settings import BreakerSettings, DeploymentSettings, ListenSettings, Settings
from router.errors import Problem

# What cannot change in a running process: the key's name, and its value in settings.
_FIXED: Final[tuple[tuple[str, str], ...]] = (
    ("general_settings.listen", "listen"),
    ("general_settings.ops_listen", "ops_listen"),
    ("general_settings.workers", "workers"),
    ("general_settings.handover", "handover"),
    ("general_settings.proxy_protocol", "proxy_protocol"),
    ("general_settings.root_path", "root_path"),
    ("general_settings.dashboard", "dashboard"),
    ("general_settings.tracing", "tracing"),
    ("general_settings.log_format", "log_format"),
)
_FLEET: Final = "router_settings.redis"
_TLS: Final = "general_settings.tls"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """A generation as a running process can have it.

    Attributes:
        settings: to be in force.
        restart_needed: keys of the file whose values are not in these settings.
    """

    settings: Settings
    restart_needed: tuple[str, ...]


def effective(running: Settings, wanted: Settings) -> Effective:
    """Return a generation with what cannot change in a running process as it is there.

    Args:
        running: in force in the process.
        wanted: what the file says.
    """
    old, new = running.server, wanted.server
    kept = {name: getattr(old, name) for _, name in _FIXED}
    waiting = [key for key, name in _FIXED if getattr(old, name) != getattr(new, name)]
    tls = new.tls
    if (old.tls is None) != (new.tls is None):
        # Other files are another certificate; a certificate where there was none is another protocol.
        waiting.append(_TLS)
        tls = old.tls
    if running.fleet != wanted.fleet:
        waiting.append(_FLEET)
    server = replace(new, tls=tls, **kept)
    return Effective(settings=replace(wanted, server=server, fleet=running.fleet), restart_needed=tuple(waiting))


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one generation changed about the deployments of the one before it; ids, in the file's order."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def change_of(old: Settings, new: Settings) -> Change:
    """Return what ``new`` changes about the deployments of ``old``. Another place in the file is no change."""
    was, now = _deployments(old), _deployments(new)
    return Change(
        added=tuple(one for one in now if one not in was),
        changed=tuple(one for one in now if one in was and now[one] != was[one]),
        removed=tuple(one for one in was if one not in now),
    )


def _deployments(settings: Settings) -> dict[str, tuple[DeploymentSettings, BreakerSettings]]:
    return {
        deployment.id: (replace(deployment, position=0), group.breaker)
        for group in settings.groups.values()
        for deployment in group.deployments
    }


def exposed(
    settings: Settings, *, is_loopback: Callable[[str], bool], file: str, inherited: Sequence[ListenSettings] = ()
) -> tuple[Problem, ...]:
    """Return why settings would open the router to everybody: no key any more, on addresses that others reach.

    The check of a file sees the addresses that it names, and those in force may be others.

    Args:
        settings: to be in force.
        is_loopback: whether a host is reached from this one alone.
        file: for the problems.
        inherited: where systemd listens for this process, whatever the file says.
    """
    server = settings.server
    if not server.keyless:
        return ()
    proxied = Problem(
        file=file,
        line=None,
        path="general_settings.master_key",
        found="no key any more, while proxy_protocol is true until a restart",
        expected="a key, because other hosts can reach a proxy",
        hint="keep a key until the restart",
    )
    places = (
        ("listen", server.listen),
        ("ops_listen", server.ops_listen),
        *(("systemd's socket", place) for place in inherited),
    )
    return ((proxied,) if server.proxy_protocol else ()) + tuple(
        Problem(
            file=file,
            line=None,
            path="general_settings.master_key",
            found=f"no key any more, while {name} is {listen.host}:{listen.port} until a restart",
            expected="a key, because other hosts can reach that address",
            hint="keep a key until the restart",
        )
        for name, listen in places
        if listen is not None and not is_loopback(listen.host)
    )


def problem_document(problem: Problem) -> dict[str, Any]:
    """Return a problem as the admin API shows it."""
    return {
        "file": problem.file,
        "line": problem.line,
        "path": problem.path,
        "found": problem.found,
        "expected": problem.expected,
        "hint": problem.hint,
        "text": str(problem),
    }


def problem_of(document: Mapping[str, Any]) -> Problem:
    """Return the problem of a document that ``problem_document`` made."""
    return Problem(**{name: document[name] for name in ("file", "line", "path", "found", "expected", "hint")})


@dataclass(slots=True, kw_only=True)
class History:
    """What is known of the generations of a process, for operators.

    Attributes:
        file: the configuration's name; ``None``: it was not read from a file.
        generation: number of the one in force, from 1.
        loaded_at: when it was put in force; epoch seconds, as all moments here.
        watching: whether a change of the file is a reload.
        restart_needed: keys whose values in the file wait for a restart.
        at: when a configuration was read last.
        trigger: what had it read.
        errors: why it was refused; empty when it was not.
        warnings: what was said of it.
    """

    file: str | None
    loaded_at: float
    generation: int = 1
    watching: bool = False
    restart_needed: Sequence[str] = ()
    at: float = 0.0
    trigger: str = "start"
    errors: Sequence[Problem] = ()
    warnings: Sequence[Problem] = ()

    def accepted(
        self, *, trigger: str, at: float, warnings: Sequence[Problem], restart_needed: Sequence[str], watching: bool
    ) -> None:
        """A configuration that was read is in force; it is the next generation."""
        self.generation += 1
        self.loaded_at = self.at = at
        self.trigger, self.errors, self.warnings = trigger, (), warnings
        self.restart_needed, self.watching = restart_needed, watching

    def refused(self, *, trigger: str, at: float, errors: Sequence[Problem], warnings: Sequence[Problem]) -> None:
        """A configuration that was read is not in force."""
        self.at, self.trigger, self.errors, self.warnings = at, trigger, errors, warnings

    def describe(self) -> Mapping[str, Any]:
        """Return it as the admin API shows it."""
        return {
            "generation": self.generation,
            "file": self.file,
            "loaded_at": self.loaded_at,
            "watching": self.watching,
            "restart_needed": list(self.restart_needed),
            "last_reload": {
                "at": self.at or self.loaded_at,
                "trigger": self.trigger,
                "successful": not self.errors,
                "errors": [problem_document(problem) for problem in self.errors],
                "warnings": [problem_document(problem) for problem in self.warnings],
            },
        }
