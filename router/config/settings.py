"""The checked configuration: frozen values, defaults filled in, names resolved. One instance is one generation.

Nothing here reads a file or an environment variable; ``router.config.load`` does. All times are seconds, all sizes bytes.
``None`` means what the attribute's comment says it disables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

NO_ITEMS: Mapping[str, str] = MappingProxyType({})


class Secret:
    """A string that must not be printed: ``repr``, ``str`` and pickling give no hint of it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value, for the one place that sends or compares it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('***')"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(("Secret", self._value))

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not pickled")


ReadyRule = Literal["first_event", "auto", "handshake"]
DeploymentState = Literal["ready", "drain", "maint", "misconfigured"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheckSettings:
    """Active probing of one deployment: a session is opened and its first good event awaited. It may cost money."""

    interval_s: float  # never more often than this, jitter only ever lengthens it
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSettings:
    """One target of a group: an entry of ``model_list``."""

    id: str
    group: str
    position: int  # index among the group's deployments, in the file's order
    provider: str  # a name in ``router.providers.PROVIDERS``
    model: str  # what the upstream calls it (Azure: the deployment's name there)

    api_key: Secret | None = None
    api_base: str | None = field(default=None, repr=False)  # overrides scheme, host and path; its query may hold a key
    api_version: str | None = None  # Azure preview only
    realtime_protocol: Literal["ga", "preview"] = "ga"  # Azure only
    organization: str | None = None  # OpenAI only
    project: str | None = None  # OpenAI only
    azure_ad_token: Secret | None = None
    azure_ad_token_file: str | None = None  # read again before each dial when it changed
    azure_ad_token_command: tuple[str, ...] = field(default=(), repr=False)  # argv; its stdout is the token
    extra_headers: Mapping[str, Secret] = field(default_factory=lambda: MappingProxyType({}))
    extra_query: Mapping[str, Secret] = field(default_factory=lambda: MappingProxyType({}))

    weight: float = 1.0
    order: int = 0
    max_sessions: int | None = None  # None: no limit
    rpm: int | None = None  # sessions started a minute; None: no limit
    tpm: int | None = None  # tokens a minute, as the provider reports them; None: no limit
    state: DeploymentState = "ready"
    problem: str = ""  # why ``state`` is ``misconfigured``

    ready: ReadyRule = "first_event"
    ready_grace_s: float = 1.0  # ``auto``: this much silence on an open socket counts as ready
    connect_timeout_s: float = 2.0  # TCP + TLS + upgrade
    ready_timeout_s: float = 3.0  # from the 101 to the first good event
    timeout_s: float | None = None  # LiteLLM's ``timeout``: bounds the two together; None: no further bound

    proxy: str | None = field(default=None, repr=False)  # may hold a password; None: HTTPS_PROXY and NO_PROXY decide
    ca_file: str | None = None  # None: the system's authorities
    client_cert: str | None = None
    client_key: str | None = None  # None: the key is in ``client_cert``
    tls_server_name: str | None = None  # None: the URL's host
    health_check: HealthCheckSettings | None = None  # None: no active probing


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySettings:
    """Limits of a running session."""

    max_message_bytes: int = 32 * 1024 * 1024
    ping_interval_s: float = 20.0
    ping_timeout_s: float = 45.0  # a leg is dead after this long without any byte
    stall_timeout_s: float = 30.0  # a reader that takes nothing for this long is closed
    idle_timeout_s: float | None = None  # None: a session may be silent for ever
    max_session_s: float | None = None  # None: no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSettings:
    """When a deployment is ejected and for how long."""

    allowed_fails: int = 3  # consecutive failures that eject
    cooldown_s: float = 30.0  # ejection lasts this times the number of ejections in a row ...
    max_cooldown_s: float = 300.0  # ... but no longer
    jitter: float = 0.2  # ± share of the ejection's length
    authentication_cooldown_s: float = 300.0  # a refused key ejects at once for this long
    slow_start_s: float = 30.0  # a readmitted deployment's weight ramps up over this; 0: no ramp
    early_close_s: float = 5.0  # an abnormal end within this of ready counts as a failure


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategySettings:
    """A strategy, resolved: its class is imported and its options are parsed."""

    name: str  # the registered name, aliases resolved; ``module:Class`` for one loaded from the YAML
    cls: type[object]  # implements strategies.base.Strategy
    options: object  # an instance of ``cls.Options``


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSettings:
    """A public ``model_name`` with the deployments that serve it."""

    name: str
    deployments: tuple[DeploymentSettings, ...]
    strategy: StrategySettings
    fallbacks: tuple[str, ...] = ()  # groups tried in turn when this one has nothing left
    total_timeout_s: float = 8.0
    max_attempts: int | None = None  # None: every deployment in reach
    num_retries: int | None = None  # re-dials after all were tried; None: as many as the total allows
    stagger_s: float = 1.5  # an attempt silent for this long starts the next one beside it
    forward_query: frozenset[str] = frozenset()  # beyond ``intent`` and ``conversation_id``
    forward_headers: frozenset[str] = frozenset()  # lower case; beyond ``openai-safety-identifier``
    relay: RelaySettings = field(default_factory=RelaySettings)
    breaker: BreakerSettings = field(default_factory=BreakerSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySettings:
    """A virtual key. The key itself is never stored."""

    name: str  # for logs and metrics
    sha256: str  # 64 lower-case hex digits
    groups: frozenset[str] | None = None  # None: every group
    max_sessions: int | None = None  # None: no limit
    expires_at: float | None = None  # epoch seconds; None: never


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenSettings:
    """An address to listen on."""

    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainSettings:
    """How the process ends when it is asked to (SIGTERM)."""

    grace_s: float = 5.0  # new sessions are accepted for this long, while load balancers see that it is not ready any more
    timeout_s: float = 600.0  # running sessions may go on for this long after that
    code: Literal[1001, 1012] = 1001  # close code of those that are ended then: going away, or service restart


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenTlsSettings:
    """The certificate that the router shows on ``listen``. The files are read again when they change."""

    cert_file: str
    key_file: str | None = None  # None: the key is in ``cert_file``


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """The Redis or Valkey server through which replicas tell each other what they hold."""

    kind: Literal["single", "sentinel", "cluster"] = "single"
    nodes: tuple[tuple[str, int], ...] = ()  # host and port of the server, the sentinels, or some nodes of the cluster
    path: str | None = None  # Unix socket of a single server, in the place of ``nodes``
    service: str = ""  # sentinels only: the name of the master
    db: int = 0  # not in a cluster
    username: str | None = None  # None: the default user
    password: Secret | None = None
    sentinel_username: str | None = None
    sentinel_password: Secret | None = None  # None: the sentinels ask for none
    tls: bool = False  # towards sentinels as well
    ca_file: str | None = None  # None: the system's authorities
    client_cert: str | None = None
    client_key: str | None = None  # None: the key is in ``client_cert``
    prefix: str = "realtime-router"  # of every key; two fleets on one server need two
    # What becomes of ``max_sessions`` while the server is away: each process grants its part of it, or nothing.
    on_loss: Literal["open", "closed"] = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """``general_settings``: the process as a whole."""

    listen: ListenSettings = field(default_factory=lambda: ListenSettings(host="127.0.0.1", port=4000))
    ops_listen: ListenSettings | None = None  # None: metrics, admin and dashboard on ``listen``
    master_key: Secret | None = None
    keys: tuple[KeySettings, ...] = ()
    trusted_proxies: tuple[str, ...] = ()  # addresses and CIDR networks whose X-Forwarded-* count
    allowed_origins: tuple[str, ...] = ()  # empty: the router's own host; "*": any
    default_model: str | None = None  # None: a request without a model is refused
    handshake_errors: Literal["auto", "http", "close"] = "auto"
    expose_routing: bool = False
    metrics_auth: bool = False
    max_sessions: int = 10_000  # in the whole process; lowered to what the descriptors allow
    max_pending: int = 1_000  # handshakes under way
    handshake_timeout_s: float = 10.0  # from accept to a complete request head
    retry_budget_ratio: float = 0.2  # re-dials as a share of session starts ...
    retry_budget_min_per_s: float = 3.0  # ... but at least this many a second
    log_format: Literal["auto", "json", "console"] = "auto"  # auto: console on a terminal
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    workers: int = 1  # processes that serve the listening addresses together
    drain: DrainSettings = field(default_factory=DrainSettings)
    handover: str | None = None  # Unix socket by which a successor takes the listening sockets over; None: none can
    tls: ListenTlsSettings | None = None  # None: plain HTTP on ``listen``
    proxy_protocol: bool = False  # every connection to ``listen`` begins with a PROXY header (version 1 or 2)
    root_path: str = ""  # what all paths begin with: a proxy's prefix, with a slash before it and none behind it
    watch: bool = True  # a change of the file is a reload
    dashboard: bool = True  # the dashboard is served at /
    tracing: bool = False  # spans by OpenTelemetry, which its OTEL_… variables configure

    @property
    def keyless(self) -> bool:
        """No key is configured, so only this host may connect."""
        return self.master_key is None and not self.keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One generation of the configuration."""

    server: ServerSettings
    groups: Mapping[str, GroupSettings]
    aliases: Mapping[str, str] = field(default_factory=lambda: NO_ITEMS)  # public alias → group name
    hidden_aliases: frozenset[str] = frozenset()  # aliases that work and that ``/v1/models`` leaves out
    fleet: FleetSettings | None = None  # None: no server; the workers of one router share their state without it
