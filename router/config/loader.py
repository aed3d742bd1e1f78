"""A file → ``Settings``: reads, checks section by section, and tells every problem at once."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import stat
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from router.config.deployments import Entries, read_entries
from router.config.fleet import SERVER_KEYS, read_fleet
from router.config.groups import Aliases, Sections, build_groups, find_group, read_aliases
from router.config.report import Report, describe, quoted
from router.config.rules import MOST_WORKERS
from router.config.schema import Drain, File, GeneralSettings, Group, ListenTls, LitellmSettings, RouterSettings, VirtualKey
from router.config.sections import Environment, Ignored, check_section
from router.config.settings import (
    DrainSettings,
    KeySettings,
    ListenSettings,
    ListenTlsSettings,
    Secret,
    ServerSettings,
    Settings,
)
from router.config.source import MAX_BYTES, Document, Path, decode, parse, printable
from router.errors import ConfigError, Problem

# Keys that stand in documentation and examples; whoever scans for open routers tries them first.
_WELL_KNOWN_KEYS = frozenset(
    "sk-1234 sk-12345 sk-123456 sk-12345678 sk-master sk-my-secret-key sk-my_special_key 1234 12345678 admin changeme change-me"
    " default example master password realtime-router router secret test your-secret-key".split()
)
_SHORT_KEY = 16
# What ``Call.principal`` says for sessions without a virtual key.
_RESERVED_NAMES = frozenset({"master", "anonymous"})
# What router.tracing needs of the extra [otel].
_TRACING_MODULES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
# Read once: what a type checker knows of the system it runs on must not decide what it sees of this module.
_PLATFORM: Final[str] = sys.platform


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A configuration that can be used.

    Attributes:
        settings: one generation.
        warnings: what has not the effect its author may expect, in the file's order.
        files: absolute names of the files whose content is part of it (``file:PATH``), the configuration's own excepted.
        secrets: what these files held.
    """

    settings: Settings
    warnings: tuple[Problem, ...]
    files: tuple[str, ...] = ()
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


def load(
    path: str | os.PathLike[str], *, environ: Mapping[str, str] = os.environ, host: str | None = None, port: int | None = None
) -> Loaded:
    """Read and check a configuration file.

    Args:
        path: the file. Relative names of files in it start from its folder.
        environ: for ``os.environ/NAME`` and the providers' usual key variables.
        host: the command line's address to listen on, which wins over ``general_settings.listen``.
        port: the same for the port.

    Raises:
        ConfigError: the file cannot be used; with all its problems.
    """
    return load_text(read_text(path), path=path, environ=environ, host=host, port=port)


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a configuration file, without a look at what it says.

    Raises:
        ConfigError: it cannot be read, or is no text.
    """
    name = os.fspath(path)
    return decode(_read(name), file=printable(name, 200))


def load_text(
    text: str,
    *,
    path: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    host: str | None = None,
    port: int | None = None,
    remembered: Mapping[str, str] | None = None,
) -> Loaded:
    """Check a configuration that is in memory, as ``load`` does.

    Args:
        text: the YAML.
        path: the file that it is from; ``None``: none, and relative file names start from the working directory.
        environ: as for ``load``.
        host: as for ``load``.
        port: as for ``load``.
        remembered: ``Loaded.secrets`` of the same text, which is in force elsewhere: what it needed of other files then, the
            certificate's too, is not looked at again.

    Raises:
        ConfigError: it cannot be used; with all its problems.
    """
    file = "<string>" if path is None else printable(os.fspath(path), 200)
    folder = os.getcwd() if path is None else os.path.dirname(os.path.abspath(os.fspath(path)))
    return _load(text, file=file, environ=environ, folder=folder, host=host, port=port, remembered=remembered)


def _read(name: str) -> bytes:
    def refuse(found: str, expected: str = "a readable YAML file") -> ConfigError:
        return ConfigError([Problem(file=printable(name, 200), line=None, path="(file)", found=found, expected=expected)])

    try:
        mode = os.stat(name).st_mode
        # A pipe is what "<(command)" of a shell gives; other special files have no end or no content.
        if stat.S_ISDIR(mode):
            raise refuse("a directory")
        if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
            raise refuse("a special file")
        with open(name, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise refuse("no such file") from None
    except PermissionError:
        raise refuse("a file that this user may not read") from None
    except OSError as exc:
        raise refuse(f"a file that cannot be read ({exc.strerror})") from None
    except ValueError:
        raise refuse("a name that no file can have") from None


def _load(
    text: str,
    *,
    file: str,
    environ: Mapping[str, str],
    folder: str,
    host: str | None,
    port: int | None,
    remembered: Mapping[str, str] | None,
) -> Loaded:
    document = parse(text, file=file)
    report = Report(document)
    ignored = Ignored(report)
    data = _top_level(document, ignored, report)
    own = _own_variables(data.get("environment_variables"), report)
    env = Environment(environ, own, hidden=report.hidden, folder=folder, remembered=remembered)

    def section(model: Any, name: str, path: Path, raw: object) -> Any:
        return check_section(model, raw, section=name, path=path, env=env, ignored=ignored, report=report)

    general: GeneralSettings = section(GeneralSettings, "general_settings", ("general_settings",), data.get("general_settings"))
    router: RouterSettings = section(RouterSettings, "router_settings", ("router_settings",), data.get("router_settings"))
    litellm: LitellmSettings = section(LitellmSettings, "litellm_settings", ("litellm_settings",), data.get("litellm_settings"))
    raw_groups = _mapping(data.get("groups"), ("groups",), report)
    groups: dict[str, Group] = {name: section(Group, "groups", ("groups", name), raw) for name, raw in raw_groups.items()}

    workers = _workers(general, report)
    fleet = read_fleet(router, raw=data.get("router_settings"), env=env, report=report, folder=folder)
    entries = read_entries(data.get("model_list"), env=env, ignored=ignored, report=report, folder=folder)
    aliases = Aliases(names={})
    built = {}
    # Without deployments every name in the rest of the file is unknown; saying so would bury the reason.
    if entries.served:
        aliases = read_aliases(router, entries, report)
        shared = fleet is not None or _meant_to_share(general, report)
        built = build_groups(entries, Sections(router=router, groups=groups, litellm=litellm, shared=shared), aliases, report)
    server = _server(general, entries, aliases, report, host=host, port=port, workers=workers, folder=folder)
    if server.tls is not None and remembered is None:
        _check_certificate(server.tls, ("general_settings", "tls"), report)
    _tell_misconfigured(entries, report)
    ignored.tell()
    files = tuple(sorted(env.files))
    report.raise_if_failed(files=files)
    settings = Settings(
        server=server,
        groups=MappingProxyType(built),
        aliases=MappingProxyType(dict(aliases.names)),
        hidden_aliases=aliases.hidden,
        fleet=fleet,
    )
    return Loaded(settings=settings, warnings=report.told(report.warnings), files=files, secrets=env.secrets)


def _top_level(document: Document, ignored: Ignored, report: Report) -> dict[str, object]:
    data = ignored.strip(document.data, section="", path=())
    for key in data:
        # As in Compose files: a place for anchors that belongs to nobody.
        if key not in File.model_fields and not key.startswith("x-"):
            report.unknown_key((key,), File.model_fields)
    return data


def _mapping(raw: object, path: Path, report: Report) -> dict[str, object]:
    if raw is None:
        return {}
    if isinstance(raw, dict):
        return raw
    report.error(path, describe(raw, path), "a mapping")
    return {}


def _own_variables(raw: object, report: Report) -> dict[str, str]:
    path: Path = ("environment_variables",)
    own: dict[str, str] = {}
    for name, value in _mapping(raw, path, report).items():
        if isinstance(value, bool):
            own[name] = str(value)  # as LiteLLM writes it into the environment
        elif isinstance(value, str | int | float):
            own[name] = str(value) if not isinstance(value, int) or abs(value) < 10**100 else ""
        elif value is not None:
            report.error((*path, name), describe(value, path), "text")
    return own


def _tell_misconfigured(entries: Entries, report: Report) -> None:
    """Warn of deployments that are out of service; when none is left in the whole file, these are its errors."""
    none_left = bool(entries.served) and all(entry.problems for entry in entries.served)
    for entry in entries.served:
        for fault in entry.problems:
            if none_left:
                report.error(fault.path, fault.found, fault.expected, fault.hint or "no deployment is left in service")
            else:
                report.warn(fault.path, fault.found, fault.expected, f"deployment {quoted(entry.id)} is out of service")


def _meant_to_share(general: GeneralSettings, report: Report) -> bool:
    """Whether there are to be other processes, however many there are in fact.

    ``auto`` counts on a host with one CPU too: the same file must not be refused there. So do a server and workers with faults of
    their own, since a strategy that needs them would be their consequence.
    """
    told = [("general_settings", "workers"), *(("router_settings", key) for key in SERVER_KEYS)]
    return general.workers not in (None, 1) or any(report.told_at(path) for path in told)


# --- the process ---------------------------------------------------------------------------------

_SAME_NAME = (
    "ops_listen",
    "handshake_errors",
    "expose_routing",
    "metrics_auth",
    "max_sessions",
    "max_pending",
    "handshake_timeout_s",
    "retry_budget_ratio",
    "retry_budget_min_per_s",
    "log_format",
    "log_level",
    "proxy_protocol",
    "root_path",
    "watch",
    "dashboard",
    "tracing",
)


def _workers(general: GeneralSettings, report: Report) -> int:
    """Return the number of processes; 1 after an error."""
    path: Path = ("general_settings", "workers")
    wanted = general.workers
    if wanted is None or wanted == 1:
        return 1
    if _PLATFORM != "linux":
        why = "more need fork, and a SO_REUSEPORT that spreads connections as Linux does"
        if wanted == "auto":
            report.warn(path, f"auto on {_PLATFORM}, which is read as 1", "1", why)
        else:
            report.error(path, f"{wanted} on {_PLATFORM}", "1 on this system", why)
        return 1
    return min(_cpus(), MOST_WORKERS) if wanted == "auto" else wanted


def _cpus() -> int:
    """Return the number of CPUs that this process may use, as far as the system says."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _server(
    general: GeneralSettings,
    entries: Entries,
    aliases: Aliases,
    report: Report,
    *,
    host: str | None,
    port: int | None,
    workers: int,
    folder: str,
) -> ServerSettings:
    path: Path = ("general_settings",)
    values: dict[str, Any] = {key: getattr(general, key) for key in _SAME_NAME if getattr(general, key) is not None}
    server = ServerSettings(
        listen=_listen(general.listen or ServerSettings().listen, host, port),
        master_key=None if general.master_key is None else Secret(general.master_key),
        keys=_keys(general.keys or [], (*path, "keys"), entries, aliases, report),
        trusted_proxies=tuple(dict.fromkeys(general.trusted_proxies or ())),
        allowed_origins=tuple(dict.fromkeys(general.allowed_origins or ())),
        default_model=_default_model(general.default_model, (*path, "default_model"), entries, aliases, report),
        workers=workers,
        drain=_drain(general.drain),
        handover=None if general.handover is None else os.path.join(folder, general.handover),
        tls=_tls(general.tls, (*path, "tls"), report, folder=folder),
        **values,
    )
    _check_general(general, server, path, report)
    # With a key that has faults the router is not keyless, and the key's own problem is told.
    if server.keyless and not report.told_at((*path, "master_key")) and not report.told_at((*path, "keys")):
        _check_keyless(server, path, report, host=host)
    return server


def _drain(drain: Drain | None) -> DrainSettings:
    values = {} if drain is None else drain.model_dump(exclude_none=True)
    return DrainSettings(**values)


def _tls(tls: ListenTls | None, path: Path, report: Report, *, folder: str) -> ListenTlsSettings | None:
    if tls is None:
        return None
    if tls.cert_file is None:
        if not report.told_at((*path, "cert_file")):
            report.error((*path, "cert_file"), "no certificate", "cert_file: FILE", "leave tls out to serve plain HTTP")
        return None
    key_file = None if tls.key_file is None else os.path.join(folder, tls.key_file)
    return ListenTlsSettings(cert_file=os.path.join(folder, tls.cert_file), key_file=key_file)


def _check_certificate(tls: ListenTlsSettings, path: Path, report: Report) -> None:
    if report.told_at(path):
        return
    # ssl takes long to load, and most files have no use for it.
    from router.listener.certificate import UnfitCertificate, server_context

    try:
        server_context(tls)
    except UnfitCertificate as unfit:
        report.error((*path, unfit.key), unfit.found, unfit.expected)


def _listen(listen: ListenSettings, host: str | None, port: int | None) -> ListenSettings:
    return replace(listen, host=listen.host if host is None else host, port=listen.port if port is None else port)


def _default_model(name: str | None, path: Path, entries: Entries, aliases: Aliases, report: Report) -> str | None:
    if name is None or not entries.served:
        return None
    return find_group(name, path, entries, aliases, report, what="the group")


# Linux takes 107; a new router's process id is put behind it until it takes the path over.
_LONGEST_SOCKET_PATH = 98


def _check_general(general: GeneralSettings, server: ServerSettings, path: Path, report: Report) -> None:
    if general.master_key is not None:
        _check_master_key(general.master_key, (*path, "master_key"), report)
    for index, proxy in enumerate(general.trusted_proxies or ()):
        if proxy in ("0.0.0.0/0", "::/0"):
            report.warn(
                (*path, "trusted_proxies", index),
                "every address",
                "the addresses of your proxies",
                "any client can claim any address",
            )
    if server.ops_listen is not None and server.ops_listen == server.listen and server.listen.port != 0:
        report.error(
            (*path, "ops_listen"), "the address of listen", "another address or port", "leave it out to share one address"
        )
    if server.proxy_protocol and not server.trusted_proxies and not report.told_at((*path, "trusted_proxies")):
        report.error(
            (*path, "proxy_protocol"),
            "true without trusted_proxies",
            f"the proxies' addresses in {path[0]}.trusted_proxies",
            "only they may say for whom they speak",
        )
    if server.handover is not None and (size := len(os.fsencode(server.handover))) > _LONGEST_SOCKET_PATH:
        report.error(
            (*path, "handover"),
            f"a path of {size} bytes",
            f"at most {_LONGEST_SOCKET_PATH}",
            "the system has no room for longer ones; it is beside this file unless it begins with a slash",
        )
    if server.metrics_auth and server.keyless:
        report.warn((*path, "metrics_auth"), "true without any key", "a master_key", "it has no effect")
    if server.tracing and not all(map(_is_installed, _TRACING_MODULES)):
        report.error(
            (*path, "tracing"),
            "true without OpenTelemetry",
            "the extra [otel] beside it, or false",
            "pip install 'realtime-router[otel]'",
        )


def _is_installed(module: str) -> bool:
    """Whether a module could be imported; it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # what it is in is not there either
        return False


def _check_master_key(key: str, path: Path, report: Report) -> None:
    if key.lower() in _WELL_KNOWN_KEYS:
        report.warn(path, "a key that stands in examples", "a random key", "'realtime-router key new' prints one")
    elif len(key) < _SHORT_KEY:
        report.warn(
            path, f"a key of {len(key)} characters", f"at least {_SHORT_KEY} random ones", "'realtime-router key new' prints one"
        )


def _check_keyless(server: ServerSettings, path: Path, report: Report, *, host: str | None) -> None:
    if server.proxy_protocol:
        expected = f"{path[0]}.master_key or {path[0]}.keys, because other hosts can reach a proxy"
        report.error((*path, "proxy_protocol"), "true without any key", expected)
    hint = f"set {path[0]}.master_key (for example os.environ/MASTER_KEY) or {path[0]}.keys, or listen on 127.0.0.1"
    expected = "a key, because other hosts can reach that address"
    for key, listen in (("listen", server.listen), ("ops_listen", server.ops_listen)):
        if listen is None or is_loopback(listen.host):
            continue
        found = f"the address {quoted(listen.host)} without any key"
        if key == "listen" and host is not None:
            report.errors.append(
                Problem(file=report.document.file, line=None, path="--host", found=found, expected=expected, hint=hint)
            )
        else:
            report.error((*path, key), found, expected, hint)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this host alone."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _keys(keys: list[VirtualKey], path: Path, entries: Entries, aliases: Aliases, report: Report) -> tuple[KeySettings, ...]:
    built: list[KeySettings] = []
    names: dict[str, int] = {}
    hashes: dict[str, int] = {}
    for index, key in enumerate(keys):
        place = (*path, index)
        groups = _key_groups(key, place, entries, aliases, report)
        if key.name is None or key.sha256 is None:
            if not report.told_at(place):
                report.error(place, f"no {'name' if key.name is None else 'sha256'}", "a key's name and sha256 hash")
            continue
        if key.name in _RESERVED_NAMES:
            report.error((*place, "name"), f"the reserved name {key.name!r}", "another name")
        if names.setdefault(key.name, index) != index:
            report.error(
                (*place, "name"), f"the name {quoted(key.name)} again", f"a name other than that of keys[{names[key.name]}]"
            )
        if hashes.setdefault(key.sha256, index) != index:
            report.error((*place, "sha256"), "a hash again", f"a key other than that of keys[{hashes[key.sha256]}]")
        if key.expires is not None and key.expires <= time.time():
            report.warn((*place, "expires"), "a time that has passed", "a time to come", "the key is refused")
        built.append(
            KeySettings(
                name=key.name,
                sha256=key.sha256,
                groups=groups,
                max_sessions=key.max_sessions,
                expires_at=key.expires,
            )
        )
    return tuple(built)


def _key_groups(key: VirtualKey, path: Path, entries: Entries, aliases: Aliases, report: Report) -> frozenset[str] | None:
    if key.models is not None and key.groups is not None:
        report.error((*path, "groups"), "groups beside models", "one of the two: they mean the same")
    name = "groups" if key.groups is not None else "models"
    listed = key.groups if key.groups is not None else key.models
    if listed is None:
        return None
    if not listed:
        # LiteLLM reads an empty list as "all"; a reader reads it as "none".
        report.error((*path, name), "an empty list", "at least one group; leave the key out to allow all")
        return frozenset()
    if not entries.served:
        return frozenset()
    found = (
        find_group(group, (*path, name, index), entries, aliases, report, what="the group") for index, group in enumerate(listed)
    )
    return frozenset(group for group in found if group is not None)
