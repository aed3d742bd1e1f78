"""The observer that counts for Prometheus. ``docs/metrics.md`` lists what it exports, and a test compares the two.

Labels come from bounded sets only: names of the configuration, or words of a fixed list with ``other`` for the rest. What a
client or an upstream may choose (close codes, event types) is mapped before it becomes a label, for each distinct value would
stay in memory, and in Prometheus, for ever.

What changes with time alone (a breaker's state, an average that fades) is read when somebody scrapes, not told by events. The
registry is handed in; nothing here touches the library's global one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final, TypeVar, cast, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from router import events
from router._version import __version__
from router.errors import Overloaded, RouterError
from router.fleet.beat import Fleet
from router.pool import Deployment
from router.relay.contract import Cause
from router.retry import Outcome
from router.usage import USAGE_FIELDS
from strategies.base import Freshness

PREFIX: Final = "realtime_router_"
OTHER: Final = "other"

# What the parent of several workers counts itself; its text is told in both places.
RESTARTS: Final = "worker_restarts"
RESTARTS_TEXT: Final = "Workers that ended on their own and were replaced."
RELOADS: Final = "config_reloads"
RELOADS_TEXT: Final = "Configurations that were read."

# Every word that ``Deployment.state`` may say.
STATES: Final = ("admitting", "ejected", "probing", "cooling_down", "draining", "maint", "misconfigured")

_OUTCOMES: Final = frozenset(outcome.value for outcome in Outcome)
# For these nothing is blamed, so they never eject.
_BLAMELESS: Final = frozenset({Outcome.READY, Outcome.RATE_LIMITED, Outcome.CLIENT_REQUEST, Outcome.CLIENT_GONE})
_REASONS: Final = tuple(outcome.value for outcome in Outcome if outcome not in _BLAMELESS)
_SIDES: Final = frozenset({"client", "upstream"})
_WHO: Final = _SIDES | {"router"}
_CAUSES: Final = frozenset(get_args(Cause))
_PHASES: Final = frozenset({"waiting", "idle", "turn"})
_LEVELS: Final = frozenset({"debug", "info", "warning", "error"})
# RFC 6455 §7.4.1 and the IANA registry. What is not here and below 3000 is not for applications, so nobody should send it.
_CLOSE_CODES: Final = frozenset({*range(1000, 1004), *range(1005, 1016)})
_TOKEN_KINDS: Final = tuple(name for name in USAGE_FIELDS if name != "transcription_seconds")

_READY_BUCKETS_S: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
_FIRST_AUDIO_BUCKETS_S: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 1.3, 1.7, 2.5, 4.0, 8.0)
_SESSION_BUCKETS_S: Final = (1, 5, 15, 30, 60, 120, 300, 600, 900, 1800, 2700, 3600, 5400, 7200)
_LAG_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

_BEAT_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 3.0)
#: What may have had a configuration read.
TRIGGERS: Final = frozenset({"start", "signal", "file", "api"})
_BEAT_OUTCOMES: Final = frozenset({"answered", "failed"})

_DEPLOYMENT: Final = ("group", "deployment")

F = TypeVar("F", bound=MetricWrapperBase)


class Metrics:
    """An observer of the core's events, and the answer to ``GET /metrics``.

    Args:
        registry: where everything is registered; each instance needs one of its own.
        known_types: event types that get a label of their own; every other type is counted as ``other``.
        version: for the build info.

    Raises:
        ValueError: the registry holds metrics of these names already.
    """

    def __init__(self, registry: CollectorRegistry, *, known_types: Collection[str], version: str = __version__) -> None:
        self._registry = registry
        self._types = frozenset(known_types) | {"binary"}
        self._refusal_codes = frozenset(_codes(RouterError))
        # Those with a deployment's label, for ``forget``; likewise those with a group's and no deployment's.
        self._by_deployment: list[tuple[MetricWrapperBase, tuple[str, ...]]] = []
        self._by_group: list[tuple[MetricWrapperBase, tuple[str, ...]]] = []
        self._pool: Callable[[], Iterable[Deployment]] = tuple
        self._fleet: Fleet | None = None
        self._announced: set[tuple[str, str]] = set()
        # Only what each running session adds to every few seconds: (direction, type) → events and bytes, bound.
        self._traffic_children: dict[tuple[str, str], tuple[Counter, Counter]] = {}
        self._children: dict[tuple[MetricWrapperBase, tuple[str, ...]], MetricWrapperBase] = {}
        self._define()
        Info(f"{PREFIX}build", "The program's version.", registry=registry).info({"version": version})
        registry.register(_LiveState(self._live, lambda: self._fleet))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            events.SessionStarted: self._session_started,
            events.SessionRefused: self._session_refused,
            events.Attempt: self._attempt,
            events.SessionReady: self._session_ready,
            events.FirstAudio: self._first_audio,
            events.Traffic: self._traffic,
            events.UsageRecorded: self._usage,
            events.SessionRecord: self._session_ended,
            events.Ejected: self._ejected,
            events.Admitted: self._admitted,
            events.CooledDown: self._cooled_down,
            events.ConfigAlarm: self._config_alarm,
            events.Probed: self._probed,
            events.TurnedAway: self._turned_away,
            events.FleetBeat: self._beat,
            events.Reloaded: self._reloaded,
            events.DeploymentGone: self._gone,
            events.Notice: self._notice,
        }

    def __call__(self, event: events.Event) -> None:
        """Count an event. One of a kind that is not known is ignored."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    # --- what is no event ---------------------------------------------------------------------------

    def watch(self, pool: Callable[[], Iterable[Deployment]]) -> None:
        """Show the state of these deployments from now on.

        Args:
            pool: called at each scrape; gives the deployments that exist then. Of two with one id the first is shown.
        """
        self._pool = pool

    def watch_fleet(self, fleet: Fleet | None) -> None:
        """Show from now on how this process is joined to others; ``None``: it is not."""
        self._fleet = fleet
        if fleet is not None:
            # As with deployments: the first failure must not be missed.
            for outcome in sorted(_BEAT_OUTCOMES):
                self._beats.labels(outcome)

    def forget(self, deployment: str, group: str) -> None:
        """Drop what was counted for a deployment that a later generation removed, once its last session has ended.

        What is told of it afterwards is counted from 0 again. Of an id that lives on in another group, that one's counts stay.
        """
        self._drop(self._by_deployment, deployment=deployment, group=group)
        self._announced.discard((_label(group), _label(deployment)))

    def forget_group(self, group: str) -> None:
        """Drop what was counted for a group that a later generation removed, its deployments' counts included."""
        self._drop([*self._by_deployment, *self._by_group], group=group)
        self._announced = {known for known in self._announced if known[0] != _label(group)}

    def config_loaded(self, generation: int, *, epoch_s: float) -> None:
        """The configuration of the start is in force.

        Args:
            generation: its number.
            epoch_s: the time now, seconds since the epoch.
        """
        self._config_generation.set(generation)
        self._config_loaded_at.set(epoch_s)
        self._config_successful.set(1)
        self._config_reloads.labels("success", "start").inc()

    def draining(self) -> None:
        """The process drains from now on."""
        self._draining.set(1)

    def config_in_force(self, generation: int, *, epoch_s: float, restart_needed: bool) -> None:
        """Another generation is in force; who has put it there counts it."""
        self._config_generation.set(generation)
        self._config_loaded_at.set(epoch_s)
        self._config_successful.set(1)
        self._config_restart.set(restart_needed)

    def config_refused(self) -> None:
        """A new configuration was refused; the one in force stays. Who has refused it counts it."""
        self._config_successful.set(0)

    def loop_lag(self, seconds: float) -> None:
        """The event loop was late by this much; ``router.lag.LoopLag`` tells it."""
        self._loop_lag.observe(seconds)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the answer to a scrape.

        Args:
            accept: the request's ``Accept``; OpenMetrics for whoever names it, else Prometheus' text format.

        Returns:
            Body and content type.
        """
        page = Page(accept)
        for metric in self.collect():
            page.add(metric)
        return page.body, page.content_type

    def collect(self) -> Iterator[Metric]:
        """Yield everything as it is now, for a page or for whoever adds up several processes."""
        self._announce()
        return _WithoutCreated(self._registry).collect()

    # --- definitions --------------------------------------------------------------------------------

    def _define(self) -> None:
        """Make every metric that events feed; the texts are those of ``docs/metrics.md`` in short."""
        # Sessions.
        group = ("group",)
        self._active = self._make(Gauge, "sessions_active", "Sessions under way, those that wait included.", group)
        self._started = self._make(Counter, "sessions_started", "Sessions that began.", group)
        self._ended = self._make(Counter, "sessions_ended", "Sessions that ended.", (*group, "who", "phase", "code"))
        self._ended_by_us = self._make(
            Counter, "sessions_ended_by_router", "Sessions with an upstream that the router ended.", (*group, "cause")
        )
        self._seconds = self._make(
            Histogram, "session_seconds", "Length of sessions that had an upstream.", group, buckets=_SESSION_BUCKETS_S
        )
        self._refused = self._make(Counter, "requests_refused", "Requests refused before a session began.", ("status", "code"))
        self._fallbacks = self._make(Counter, "fallbacks", "Sessions whose first deployment did not serve them.", group)
        self._ready = self._make(
            Histogram, "ready_seconds", "From a session's begin to a ready upstream.", group, buckets=_READY_BUCKETS_S
        )
        # Attempts and answers.
        outcome = (*_DEPLOYMENT, "outcome")
        self._attempts = self._make(Counter, "attempts", "Dials that ended.", outcome)
        self._attempt_seconds = self._make(
            Histogram, "attempt_seconds", "From a dial to its outcome.", outcome, buckets=_READY_BUCKETS_S
        )
        self._audio = self._make(
            Histogram,
            "first_audio_seconds",
            "From the end of speech to the answer's first audio.",
            _DEPLOYMENT,
            buckets=_FIRST_AUDIO_BUCKETS_S,
        )
        # What passed and what it cost.
        kind = ("direction", "type")
        self._events = self._make(Counter, "events", "Messages by the side they came from.", kind)
        self._bytes = self._make(Counter, "event_bytes", "Payload bytes of messages by the side they came from.", kind)
        self._tokens = self._make(Counter, "tokens", "Tokens by kind; kinds overlap.", (*_DEPLOYMENT, "kind"))
        self._transcription = self._make(
            Counter, "transcription_seconds", "Seconds of transcription that are billed by time.", _DEPLOYMENT
        )
        # Deployments.
        self._ejections = self._make(Counter, "deployment_ejections", "Ejections by the breaker.", (*_DEPLOYMENT, "reason"))
        self._readmissions = self._make(
            Counter, "deployment_readmissions", "Times an ejected deployment was ready again.", _DEPLOYMENT
        )
        self._cool_downs = self._make(
            Counter, "deployment_cool_downs", "Times a deployment asked to be left alone.", _DEPLOYMENT
        )
        self._alarms = self._make(
            Counter, "deployment_config_alarms", "Failures that only an operator can mend: key, quota, access.", _DEPLOYMENT
        )
        self._probes = self._make(Counter, "probes", "Active probes that ended.", outcome)
        # The fleet.
        self._turned = self._make(
            Counter, "deployment_turned_away", "Sessions that found the fleet's limit of a deployment used up.", _DEPLOYMENT
        )
        self._beats = self._make(Counter, "fleet_beats", "Beats by outcome.", ("outcome",))
        self._beat_seconds = self._make(
            Histogram, "fleet_beat_seconds", "From a beat to its answer or failure.", buckets=_BEAT_BUCKETS_S
        )
        # The process.
        self._notices = self._make(Counter, "notices", "Notices to the operator that belong to no session.", ("level",))
        # Each process says 1 and 0; of several, the parent adds up and puts in what it counted.
        self._make(Gauge, "workers", "Processes that serve.").set(1)
        self._make(Counter, RESTARTS, RESTARTS_TEXT)
        self._draining = self._make(Gauge, "draining", "1: it is about to end; new sessions belong elsewhere.")
        self._loop_lag = self._make(Histogram, "event_loop_lag_seconds", "By how much timers fired late.", buckets=_LAG_BUCKETS_S)
        self._config_generation = self._make(Gauge, "config_generation", "Number of the configuration in force.")
        self._config_successful = self._make(Gauge, "config_last_reload_successful", "1: the last configuration was accepted.")
        self._config_loaded_at = self._make(
            Gauge, "config_last_reload_success_timestamp_seconds", "When a configuration was last accepted."
        )
        self._config_reloads = self._make(Counter, RELOADS, RELOADS_TEXT, ("result", "trigger"))
        for trigger in sorted(TRIGGERS):
            for result in ("success", "failure"):
                self._config_reloads.labels(result, trigger)
        self._config_restart = self._make(
            Gauge, "config_restart_needed", "1: a part of the configuration in the file waits for a restart."
        )
        # ``increase()`` misses a series' first value, and of these the first is one too many.
        for level in sorted(_LEVELS):
            self._notices.labels(level)
        self._refused.labels(str(Overloaded.http_status), Overloaded.code)

    def _make(self, cls: type[F], name: str, text: str, labels: tuple[str, ...] = (), **more: Any) -> F:
        family = cls(f"{PREFIX}{name}", text, labels, registry=self._registry, **more)
        if "deployment" in labels:
            self._by_deployment.append((family, labels))
        elif "group" in labels:
            self._by_group.append((family, labels))
        return family

    # --- events -------------------------------------------------------------------------------------

    def _child(self, family: F, *labels: str) -> F:
        """``family.labels(...)``, which looks at every value and takes a lock, kept; ``forget`` and ``forget_group`` drop it."""
        child = self._children.get((family, labels))
        if child is None:
            child = self._children[family, labels] = family.labels(*labels)
        return cast(F, child)

    def _session_started(self, event: events.SessionStarted) -> None:
        group = _label(event.group)
        self._child(self._active, group).inc()
        self._child(self._started, group).inc()

    def _session_refused(self, event: events.SessionRefused) -> None:
        status = str(event.status) if 400 <= event.status <= 599 else OTHER
        self._refused.labels(status, _one_of(event.code, self._refusal_codes)).inc()

    def _attempt(self, event: events.Attempt) -> None:
        labels = (_label(event.group), _label(event.deployment), _one_of(event.outcome, _OUTCOMES))
        self._child(self._attempts, *labels).inc()
        self._child(self._attempt_seconds, *labels).observe(event.seconds)

    def _session_ready(self, event: events.SessionReady) -> None:
        group = _label(event.group)
        self._child(self._ready, group).observe(event.seconds)
        if event.fallback:
            self._fallbacks.labels(group).inc()

    def _first_audio(self, event: events.FirstAudio) -> None:
        self._audio.labels(_label(event.group), _label(event.deployment)).observe(event.seconds)

    def _traffic(self, event: events.Traffic) -> None:
        for key, (messages, size) in event.counts.items():
            direction, kind = _one_of(key[0], _SIDES), _one_of(key[1], self._types)
            children = self._traffic_children.get((direction, kind))
            if children is None:
                children = (self._events.labels(direction, kind), self._bytes.labels(direction, kind))
                self._traffic_children[direction, kind] = children
            children[0].inc(messages)
            children[1].inc(size)

    def _usage(self, event: events.UsageRecorded) -> None:
        group, deployment = _label(event.group), _label(event.deployment)
        for kind in _TOKEN_KINDS:
            tokens = getattr(event.usage, kind)
            if tokens > 0:
                self._tokens.labels(group, deployment, kind).inc(tokens)
        if event.usage.transcription_seconds > 0:
            self._transcription.labels(group, deployment).inc(event.usage.transcription_seconds)

    def _session_ended(self, event: events.SessionRecord) -> None:
        group = _label(event.group)
        self._child(self._active, group).dec()
        self._child(self._ended, group, _one_of(event.who, _WHO), _one_of(event.phase, _PHASES), end_code(event)).inc()
        if event.who == "router" and event.status == 101:
            # The close code is the same for most causes.
            self._child(self._ended_by_us, group, _one_of(event.cause, _CAUSES)).inc()
        # The lengths of sessions that never had an upstream would hide those of the ones that had.
        if event.deployment:
            self._child(self._seconds, group).observe(event.seconds)

    def _ejected(self, event: events.Ejected) -> None:
        self._ejections.labels(_label(event.group), _label(event.deployment), _one_of(event.reason, _OUTCOMES)).inc()

    def _admitted(self, event: events.Admitted) -> None:
        self._readmissions.labels(_label(event.group), _label(event.deployment)).inc()

    def _cooled_down(self, event: events.CooledDown) -> None:
        self._cool_downs.labels(_label(event.group), _label(event.deployment)).inc()

    def _config_alarm(self, event: events.ConfigAlarm) -> None:
        self._alarms.labels(_label(event.group), _label(event.deployment)).inc()

    def _probed(self, event: events.Probed) -> None:
        self._probes.labels(_label(event.group), _label(event.deployment), _one_of(event.outcome, _OUTCOMES)).inc()

    def _turned_away(self, event: events.TurnedAway) -> None:
        self._turned.labels(_label(event.group), _label(event.deployment)).inc()

    def _beat(self, event: events.FleetBeat) -> None:
        self._beats.labels(_one_of(event.outcome, _BEAT_OUTCOMES)).inc()
        self._beat_seconds.observe(event.seconds)

    def _reloaded(self, event: events.Reloaded) -> None:
        result = "failure" if event.errors else "success"
        self._config_reloads.labels(result, _one_of(event.trigger, TRIGGERS)).inc()
        if event.errors:
            self.config_refused()
        else:
            self.config_in_force(event.generation, epoch_s=event.at, restart_needed=bool(event.restart_needed))

    def _gone(self, event: events.DeploymentGone) -> None:
        self.forget(event.deployment, event.group)
        if event.with_group:
            self.forget_group(event.group)

    def _notice(self, event: events.Notice) -> None:
        self._notices.labels(_one_of(event.level, _LEVELS)).inc()

    # --- deployments that exist ---------------------------------------------------------------------

    def _live(self) -> Iterator[Deployment]:
        """Each deployment once: a series that is there twice makes Prometheus refuse the whole scrape."""
        seen: set[tuple[str, str]] = set()
        for deployment in self._pool():
            key = (_label(deployment.settings.group), _label(deployment.id))
            if key not in seen:
                seen.add(key)
                yield deployment

    def _announce(self) -> None:
        """Show 0 for what has not happened yet: ``rate()`` and ``increase()`` miss a series' first value otherwise."""
        for deployment in self._live():
            key = (_label(deployment.settings.group), _label(deployment.id))
            if key in self._announced:
                continue
            self._announced.add(key)
            for family in (self._active, self._started, self._fallbacks):
                family.labels(key[0])
            for family in (self._readmissions, self._cool_downs, self._alarms, self._turned):
                family.labels(*key)
            for outcome in Outcome:
                self._attempts.labels(*key, outcome.value)
            for reason in _REASONS:
                self._ejections.labels(*key, reason)

    def _drop(self, families: Iterable[tuple[MetricWrapperBase, tuple[str, ...]]], **wanted: str) -> None:
        self._children.clear()
        for family, labels in families:
            # The children are private to the library; what they export is not.
            samples = [sample.labels for metric in family.collect() for sample in metric.samples]
            dropped = [sample for sample in samples if all(sample[name] == _label(value) for name, value in wanted.items())]
            for child in {tuple(sample[name] for name in labels) for sample in dropped}:
                family.remove(*child)


def end_code(record: events.SessionRecord) -> str:
    """Return the label that tells with what a session ended.

    The close code of the side that ended it, or of the client's leg when the router did: known ones as they are, ``3xxx`` and
    ``4xxx`` for what applications choose, ``other`` for the rest. Where no WebSocket was opened, the HTTP status; the two do not
    overlap.
    """
    code = record.upstream_code if record.who == "upstream" else record.client_code
    if code is None:
        return str(record.status) if 400 <= record.status <= 599 else OTHER
    if code in _CLOSE_CODES:
        return str(code)
    return f"{code // 1000}xxx" if 3000 <= code <= 4999 else OTHER


class _LiveState:
    """A collector of the library's kind: reads the deployments' state when somebody scrapes."""

    def __init__(self, deployments: Callable[[], Iterable[Deployment]], fleet: Callable[[], Fleet | None]) -> None:
        self._deployments = deployments
        self._fleet = fleet

    def describe(self) -> Iterable[Metric]:
        """The same metrics without values; the library asks for their names when it registers the collector."""
        return self._families((), None)

    def collect(self) -> Iterable[Metric]:
        """The metrics with the values of now."""
        return self._families(self._deployments(), self._fleet())

    def _families(self, deployments: Iterable[Deployment], fleet: Fleet | None) -> Iterable[Metric]:
        info = InfoMetricFamily(f"{PREFIX}deployment", "What a deployment is; 1.", labels=_DEPLOYMENT)
        state = _gauge("deployment_state", "1 for the state it is in, 0 for the others.", "state")
        sessions = _gauge("deployment_sessions", "Sessions it holds, dials under way included.")
        max_sessions = _gauge("deployment_max_sessions", "Most sessions it may hold; absent without a limit.")
        weight = _gauge("deployment_weight", "Weight, slow start included.")
        ready = _gauge("deployment_ready_seconds", "Fading peak average from dial to ready; absent until measured.")
        audio = _gauge("deployment_first_audio_seconds", "Fading peak average to the first audio; absent until measured.")
        failures = _gauge("deployment_failures_in_a_row", "Failures in a row that the breaker has counted.")
        ejected = _gauge("deployment_ejected_seconds", "Seconds until an ejected one is probed; 0 otherwise.")
        used = _gauge("deployment_limit_used", "Session starts and tokens of the last minute.", "limit")
        most = _gauge("deployment_limit_max", "Most starts and tokens a minute; absent without a limit.", "limit")
        elsewhere = _gauge("deployment_sessions_elsewhere", "Sessions that other processes of the fleet hold, as last heard.")
        for deployment in deployments:
            settings = deployment.settings
            labels = [_label(settings.group), _label(deployment.id)]
            info.add_metric(labels, {"provider": _label(settings.provider), "model": _label(settings.model)})
            now = deployment.state
            for word in STATES:
                state.add_metric([*labels, word], float(word == now))
            sessions.add_metric(labels, deployment.sessions)
            if fleet is not None:
                elsewhere.add_metric(labels, deployment.elsewhere.sessions)
            weight.add_metric(labels, deployment.weight)
            failures.add_metric(labels, deployment.breaker.failures)
            ejected.add_metric(labels, deployment.breaker.remaining_s())
            for gauge, value in (
                (max_sessions, deployment.max_sessions),
                (ready, deployment.ready_s if deployment.was_ready else None),
                (audio, deployment.first_audio_s),
            ):
                if value is not None:
                    gauge.add_metric(labels, value)
            for name, window in (("rpm", deployment.starts), ("tpm", deployment.tokens)):
                used.add_metric([*labels, name], window.used())
                if window.limit is not None:
                    most.add_metric([*labels, name], window.limit)
        live = (info, state, sessions, elsewhere, max_sessions, weight, ready, audio, failures, ejected, used, most)
        return (*live, *_fleet_families(fleet))


def _fleet_families(fleet: Fleet | None) -> Iterable[Metric]:
    mode = GaugeMetricFamily(f"{PREFIX}fleet_mode", "1 for how far the other processes are known, 0 otherwise.", labels=("mode",))
    members = GaugeMetricFamily(f"{PREFIX}fleet_members", "Processes of the fleet, this one included, as last heard.")
    age = GaugeMetricFamily(f"{PREFIX}fleet_picture_age_seconds", "Age of what is known of the others; absent when nothing is.")
    if fleet is not None:
        picture = fleet.picture
        for freshness in Freshness:
            mode.add_metric([freshness.value], float(freshness is picture.freshness))
        members.add_metric([], picture.members + 1)
        if math.isfinite(picture.age_s):
            age.add_metric([], picture.age_s)
    return mode, members, age


class Page:
    """The answer to a scrape, put together family by family, so that whoever does it can attend to others in between.

    Args:
        accept: the request's ``Accept``; OpenMetrics for whoever names it, else Prometheus' text format.
    """

    _END: Final = b"# EOF\n"

    def __init__(self, accept: str = "") -> None:
        self._openmetrics = "application/openmetrics-text" in accept
        self._parts: list[bytes] = []

    def add(self, metric: Metric) -> None:
        """Add a family; each name once."""
        for _ in self.add_in_slices(metric, max(1, len(metric.samples))):
            pass

    def add_in_slices(self, metric: Metric, samples: int = 200) -> Iterator[None]:
        """Add a family; each name once. Yields after so many samples of it, for it may take long."""
        # The library leaves OpenMetrics' unannotated.
        encode: Callable[[_One], bytes] = openmetrics.generate_latest if self._openmetrics else generate_latest
        for start in range(0, max(1, len(metric.samples)), samples):
            part = Metric(metric.name, metric.documentation, metric.type)
            part.samples = metric.samples[start : start + samples]
            text = encode(_One(part)).removesuffix(self._END)
            while start and text.startswith(b"# "):
                # The family's head has been written.
                text = text[text.index(b"\n") + 1 :]
            self._parts.append(text)
            yield

    @property
    def body(self) -> bytes:
        """The page with what was added so far."""
        return b"".join((*self._parts, self._END) if self._openmetrics else self._parts)

    @property
    def content_type(self) -> str:
        """Of the body."""
        return openmetrics.CONTENT_TYPE_LATEST if self._openmetrics else CONTENT_TYPE_PLAIN_0_0_4


class _One:
    """A collector of one family."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        """Return it."""
        return (self._metric,)


class _WithoutCreated:
    """A registry's metrics without the ``_created`` series, which would double their number and which nobody reads.

    The library's own switch for that is global, so it would reach into a program that uses the router as a library.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._source = registry

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        for metric in self._source.collect():
            created = f"{metric.name}_created"
            metric.samples = [sample for sample in metric.samples if sample.name != created]
            yield metric


def _gauge(name: str, text: str, *more: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}{name}", text, labels=(*_DEPLOYMENT, *more))


def _codes(error: type[RouterError]) -> Iterator[str]:
    """Every ``code`` of the exception tree: what a refusal may say."""
    yield error.code
    for cls in error.__subclasses__():
        yield from _codes(cls)


def _one_of(value: str, allowed: frozenset[str]) -> str:
    return value if value in allowed else OTHER


def _label(value: str) -> str:
    """A name of the configuration as a label: one that is no legal UTF-8 would spoil the whole scrape."""
    return value.encode("utf-8", "backslashreplace").decode()
