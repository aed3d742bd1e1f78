"""The Prometheus observer: what it counts, what its labels may be, and that the documentation lists it."""

from __future__ import annotations

import random
import re
import typing
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from router import events
from router.accounting import KNOWN_TYPES
from router.breaker import BreakerState
from router.config.settings import BreakerSettings, DeploymentSettings, GroupSettings, StrategySettings
from router.errors import Problem
from router.fleet.beat import Fleet
from router.fleet.picture import Picture
from router.metrics import PREFIX, STATES, Metrics, end_code
from router.pool import Alone, Deployment
from router.retry import Outcome, Verdict
from router.usage import USAGE_FIELDS, Usage
from tests.helpers.clock import ManualClock
from tests.helpers.fleets import World

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
FAILED = Verdict(outcome=Outcome.TIMEOUT, blames=True, transient=True)


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry of the test's own."""
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    """Metrics with the event types that the relay's accounting knows."""
    return Metrics(registry, known_types=KNOWN_TYPES, version="1.2.3")


def deployment_of(
    name: str = "d1", *, group: str = "voice", clock: ManualClock | None = None, **settings: typing.Any
) -> Deployment:
    """A deployment as the pool makes it."""
    one = DeploymentSettings(id=name, group=group, position=0, provider="openai", model="gpt-realtime", **settings)
    strategy = StrategySettings(name="first", cls=object, options=None)
    owner = GroupSettings(name=group, deployments=(one,), strategy=strategy, breaker=BreakerSettings(allowed_fails=1))
    clock = ManualClock() if clock is None else clock
    return Deployment(
        one,
        owner,
        clock=clock,
        rng=random.Random(1),
        tell=events.Observers(),
        picture=Picture(clock),
        limits=Alone(),
    )


def attempt_of(outcome: str = "ready", *, deployment: str = "d1", seconds: float = 0.25) -> events.Attempt:
    """An attempt of the session ``s``."""
    return events.Attempt(session="s", group="voice", deployment=deployment, outcome=outcome, seconds=seconds)


def record_of(**changes: typing.Any) -> events.SessionRecord:
    """A session that a client ended well."""
    facts: dict[str, typing.Any] = {
        "session": "s",
        "group": "voice",
        "principal": "master",
        "client": "127.0.0.1",
        "deployment": "d1",
        "passed_over": (),
        "attempts": (attempt_of(),),
        "who": "client",
        "cause": "close",
        "phase": "idle",
        "status": 101,
        "client_code": 1000,
        "upstream_code": 1000,
        "upstream_reason": "",
        "seconds": 61.0,
        "ready_s": 0.25,
        "client_bytes": 10,
        "upstream_bytes": 20,
        "client_events": 1,
        "upstream_events": 2,
        "turns": 1,
        "first_audio_s": 0.4,
        "usage": Usage(),
        "generation": 1,
    }
    return events.SessionRecord(**{**facts, **changes})


STARTED = events.SessionStarted(session="s", group="voice", principal="master", client="127.0.0.1")

# One of each kind that the core tells, so that every metric has a sample.
EVERY_EVENT: tuple[events.Event, ...] = (
    STARTED,
    events.SessionRefused(session="s", status=401, code="invalid_api_key", detail="", client="127.0.0.1"),
    attempt_of("timeout", seconds=2.5),
    events.SessionReady(session="s", group="voice", deployment="d1", seconds=2.75, attempts=2, fallback=True),
    events.FirstAudio(deployment="d1", group="voice", seconds=0.45),
    events.TurnEnded(
        session="s",
        deployment="d1",
        group="voice",
        provider="openai",
        model="m",
        turn=events.Turn(seconds=1.5, status="completed"),
    ),
    events.Traffic(deployment="d1", counts={("client", "session.update"): (2, 300), ("upstream", "binary"): (5, 5000)}),
    events.UsageRecorded(
        deployment="d1", group="voice", usage=Usage(total=30, input=20, output=10, cached=5, transcription_seconds=1.5)
    ),
    record_of(),
    STARTED,
    record_of(who="router", cause="idle_timeout"),
    events.Ejected(deployment="d1", group="voice", reason="timeout", seconds=30.0, in_a_row=1),
    events.DeploymentGone(deployment="never-there", group="voice", with_group=False),
    events.Reloaded(trigger="file", generation=2, at=1.7e9),
    events.Admitted(deployment="d1", group="voice"),
    events.CooledDown(deployment="d1", group="voice", seconds=5.0),
    events.ConfigAlarm(deployment="d1", group="voice", detail="error event before ready"),
    events.Probed(deployment="d1", group="voice", outcome="ready", seconds=0.3),
    events.TurnedAway(session="s", deployment="d1", group="voice"),
    events.FleetBeat(outcome="answered", seconds=0.002),
    events.Notice(level="error", event="task failed"),
)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    """A sample's value; ``None``: there is no such sample."""
    return registry.get_sample_value(f"{PREFIX}{name}", labels)


def exported(body: bytes) -> dict[str, tuple[str, frozenset[str]]]:
    """Name → type and labels, read from a page of the text format."""
    families: dict[str, tuple[str, frozenset[str]]] = {}
    for family in parse_text(body.decode()):
        labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        families[name] = (family.type, labels)
    return families


def documented() -> dict[str, tuple[str, frozenset[str]]]:
    """Name → type and labels, read from the tables of the document."""
    families: dict[str, tuple[str, frozenset[str]]] = {}
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        row = re.fullmatch(r"\| `(\w+)` \| (\w+) \|([^|]*)\| \S[^|]* \|", line)
        if row is not None:
            assert row[1] not in families, f"{row[1]} is listed twice"
            families[row[1]] = (row[2], frozenset(re.findall(r"`(\w+)`", row[3])))
    return families


# --- the whole page ------------------------------------------------------------------------------


def test_every_kind_of_event_is_in_the_examples() -> None:
    """A new kind of event must be added to the examples, or the other tests would not look at it."""
    assert {type(event) for event in EVERY_EVENT} == set(typing.get_args(events.Event))


def fleet_of() -> Fleet:
    """A fleet of two that was heard just now."""
    fleet = World(1).processes[0].fleet
    fleet.picture.take({}, members=1, asked_at=fleet._clock())
    return fleet


def filled(metrics: Metrics) -> None:
    """Let everything happen once."""
    deployment = deployment_of(max_sessions=3, rpm=10, tpm=1000)
    deployment.ready(deployment.lease(), 0.25)
    deployment.first_audio(0.5)
    metrics.watch(lambda: [deployment])
    metrics.watch_fleet(fleet_of())
    for event in EVERY_EVENT:
        metrics(event)
    metrics.config_loaded(1, epoch_s=1.7e9)
    metrics.loop_lag(0.002)


def test_the_document_lists_exactly_what_is_exported(metrics: Metrics) -> None:
    """Name, type and labels of every metric stand in ``docs/metrics.md``, and nothing else does."""
    filled(metrics)
    page, table = exported(metrics.render()[0]), documented()
    ours = {name: family for name, family in page.items() if name.startswith(PREFIX)}
    assert len(ours) > 30
    assert ours == {name: family for name, family in table.items() if name.startswith(PREFIX)}
    # What the library adds differs between platforms: what is there is documented, though not everywhere there.
    assert page.items() <= table.items()
    assert all(name.startswith((PREFIX, "process_", "python_")) for name in table)


def test_words_of_the_document_are_those_of_the_code() -> None:
    """The fixed lists of label values in the document are complete."""
    text = DOCUMENT.read_text(encoding="utf-8")
    words = {
        **dict.fromkeys(STATES, "state"),
        **dict.fromkeys((outcome.value for outcome in Outcome), "outcome"),
        **dict.fromkeys((name for name in USAGE_FIELDS if name != "transcription_seconds"), "kind"),
    }
    assert [word for word in words if f"`{word}`" not in text] == []


def test_states_are_all_that_a_deployment_says() -> None:
    """Every word of the breaker, of the configuration and of the cool-down is one of the states that are shown."""
    said = {state.value for state in BreakerState}
    for configured in ("drain", "maint", "misconfigured"):
        said.add(deployment_of(state=configured).state)
    resting = deployment_of()
    resting.cool_down.start(5.0)
    said.add(resting.state)
    assert said == set(STATES)


def test_the_text_format_is_the_default(metrics: Metrics) -> None:
    """Without a wish, and for a wish nobody understands, the answer is Prometheus' text format."""
    for accept in ("", "*/*", "text/html", "application/json;q=nonsense"):
        body, content_type = metrics.render(accept)
        assert content_type == "text/plain; version=0.0.4; charset=utf-8"
        assert b"# TYPE realtime_router_sessions_active gauge" in body


def test_openmetrics_for_whoever_asks(metrics: Metrics) -> None:
    """The other format is legal too, as its own strict parser says, whatever version the scraper names."""
    filled(metrics)
    for accept in ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "application/openmetrics-text; version=x"):
        body, content_type = metrics.render(accept)
        assert content_type.startswith("application/openmetrics-text; version=1.0.0")
        names = {family.name for family in parse_openmetrics(body.decode())}
        assert {f"{PREFIX}attempts", f"{PREFIX}deployment", f"{PREFIX}build"} <= names


def test_no_series_tells_when_another_was_created(metrics: Metrics) -> None:
    """The library's ``_created`` series are left out, without its global switch."""
    filled(metrics)
    assert b"_created" not in metrics.render()[0]
    assert b"_created" not in metrics.render("application/openmetrics-text")[0]


def test_two_instances_share_nothing() -> None:
    """Each registry counts for itself: there is no global one behind it."""
    first, second = CollectorRegistry(), CollectorRegistry()
    one, _ = Metrics(first, known_types=()), Metrics(second, known_types=())
    one(STARTED)
    assert value(first, "sessions_started_total", group="voice") == 1
    assert value(second, "sessions_started_total", group="voice") is None


def test_an_unknown_event_is_ignored(metrics: Metrics) -> None:
    """A kind of event that a later version tells does not hurt this observer."""
    before = metrics.render()[0]
    metrics(typing.cast(events.Event, object()))
    assert exported(metrics.render()[0]) == exported(before)


# --- sessions ------------------------------------------------------------------------------------


def test_a_session_is_active_from_its_begin_to_its_record(metrics: Metrics, registry: CollectorRegistry) -> None:
    """The gauge goes up and down, the counters only up."""
    metrics(STARTED)
    metrics(STARTED)
    assert value(registry, "sessions_active", group="voice") == 2
    metrics(record_of())
    assert value(registry, "sessions_active", group="voice") == 1
    assert value(registry, "sessions_started_total", group="voice") == 2
    assert value(registry, "sessions_ended_total", group="voice", who="client", phase="idle", code="1000") == 1
    assert value(registry, "session_seconds_sum", group="voice") == 61.0


def test_a_session_without_an_upstream_has_no_length(metrics: Metrics, registry: CollectorRegistry) -> None:
    """A refusal within milliseconds would hide the lengths of real calls; it is counted by its HTTP status."""
    metrics(STARTED)
    metrics(record_of(deployment="", who="router", phase="waiting", status=503, client_code=None, upstream_code=None))
    assert value(registry, "sessions_ended_total", group="voice", who="router", phase="waiting", code="503") == 1
    assert value(registry, "session_seconds_count", group="voice") is None
    assert value(registry, "sessions_active", group="voice") == 0


def test_long_sessions_have_buckets(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Two hours, the longest session of any provider, still fall into a bucket with an end."""
    metrics(record_of(seconds=7199.0))
    assert value(registry, "session_seconds_bucket", group="voice", le="5400.0") == 0
    assert value(registry, "session_seconds_bucket", group="voice", le="7200.0") == 1


@pytest.mark.parametrize(
    ("who", "client_code", "upstream_code", "label"),
    [
        ("client", 1000, 1011, "1000"),
        ("upstream", 1011, 1001, "1001"),
        ("router", 1001, 1000, "1001"),
        ("client", 1006, 1000, "1006"),
        ("upstream", 3000, 3000, "3xxx"),
        ("client", 4999, 1000, "4xxx"),
        ("client", 1004, 1000, "other"),
        ("client", 1016, 1000, "other"),
        ("client", 2999, 1000, "other"),
        ("client", 5000, 1000, "other"),
        ("client", -1, 1000, "other"),
        ("client", 10**9, 1000, "other"),
        ("client", None, None, "503"),
        ("upstream", None, 1006, "1006"),
    ],
)
def test_the_code_of_an_end_is_of_a_fixed_set(who: str, client_code: int | None, upstream_code: int | None, label: str) -> None:
    """The code of the side that ended it; what a peer may choose freely is folded."""
    record = record_of(who=who, client_code=client_code, upstream_code=upstream_code, status=503)
    assert end_code(record) == label


def test_all_codes_together_are_few() -> None:
    """Whatever code or status comes, the number of labels stays small."""
    codes = {end_code(record_of(client_code=code)) for code in range(-10, 70_000)}
    statuses = {end_code(record_of(client_code=None, status=status)) for status in range(-10, 2000)}
    assert len(codes) < 25
    assert len(statuses) <= 201


def test_a_refusal_is_counted_by_status_and_code(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Known codes are labels, others are folded."""
    for status, code in ((404, "model_not_found"), (404, "model_not_found"), (200, "whatever-a-client-sent")):
        metrics(events.SessionRefused(session="s", status=status, code=code, detail="", client=""))
    assert value(registry, "requests_refused_total", status="404", code="model_not_found") == 2
    assert value(registry, "requests_refused_total", status="other", code="other") == 1


def test_a_fallback_is_counted_for_the_group_that_was_asked(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Only sessions that the first deployment did not serve count as fallbacks; all of them have a waiting time."""
    for fallback in (False, True):
        metrics(events.SessionReady(session="s", group="g", deployment="d", seconds=0.1, attempts=2, fallback=fallback))
    assert value(registry, "fallbacks_total", group="g") == 1
    assert value(registry, "ready_seconds_count", group="g") == 2


# --- deployments ---------------------------------------------------------------------------------


def test_attempts_by_outcome(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Each outcome has its own count and its own times; an outcome of no known kind is folded."""
    for outcome in ("ready", "timeout", "timeout", "surprise"):
        metrics(attempt_of(outcome, seconds=0.5))
    labels = {"group": "voice", "deployment": "d1"}
    assert value(registry, "attempts_total", **labels, outcome="timeout") == 2
    assert value(registry, "attempt_seconds_sum", **labels, outcome="timeout") == 1.0
    assert value(registry, "attempts_total", **labels, outcome="ready") == 1
    assert value(registry, "attempts_total", **labels, outcome="other") == 1


def test_usage_is_counted_by_kind(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Every count that is not zero is added to its kind, seconds of transcription to a counter of their own."""
    usage = Usage(**{name: index + 1 for index, name in enumerate(USAGE_FIELDS)})
    metrics(events.UsageRecorded(deployment="d1", group="voice", usage=usage))
    metrics(events.UsageRecorded(deployment="d1", group="voice", usage=Usage(total=100)))
    labels = {"group": "voice", "deployment": "d1"}
    for name in USAGE_FIELDS:
        expected = getattr(usage, name) + (100 if name == "total" else 0)
        if name == "transcription_seconds":
            assert value(registry, "transcription_seconds_total", **labels) == expected
        else:
            assert value(registry, "tokens_total", **labels, kind=name) == expected


def test_traffic_adds_up_and_knows_few_types(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Events and bytes are summed by direction and known type; a thousand invented types are one."""
    metrics(events.Traffic(deployment="d1", counts={("client", "response.create"): (1, 50), ("upstream", "error"): (2, 80)}))
    metrics(events.Traffic(deployment="d2", counts={("client", "response.create"): (3, 150)}))
    for number in range(1000):
        metrics(events.Traffic(deployment="d1", counts={("client", f"made.up.{number}"): (1, 10)}))
    assert value(registry, "events_total", direction="client", type="response.create") == 4
    assert value(registry, "event_bytes_total", direction="client", type="response.create") == 200
    assert value(registry, "event_bytes_total", direction="upstream", type="error") == 80
    assert value(registry, "events_total", direction="client", type="other") == 1000
    assert metrics.render()[0].count(b"\nrealtime_router_events_total{") == 3


def test_the_state_is_read_when_somebody_scrapes(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Exactly one state is 1, and time alone changes which: no event is needed."""
    clock = ManualClock()
    deployment = deployment_of(clock=clock)
    metrics.watch(lambda: [deployment])
    labels = {"group": "voice", "deployment": "d1"}

    def states() -> list[str]:
        shown = {state: value(registry, "deployment_state", **labels, state=state) for state in STATES}
        assert set(shown.values()) == {0.0, 1.0}
        return [state for state, on in shown.items() if on]

    assert states() == ["admitting"]
    with deployment.lease() as lease:
        assert value(registry, "deployment_sessions", **labels) == 1
        deployment.failed(lease, FAILED, 1.0, "")
    assert states() == ["ejected"]
    remaining_s = value(registry, "deployment_ejected_seconds", **labels)
    assert remaining_s is not None
    assert remaining_s > 0
    clock.advance(remaining_s)
    assert states() == ["probing"]
    with deployment.lease() as lease:
        deployment.ready(lease, 0.3)
    assert states() == ["admitting"]
    deployment.cool_down.start(5.0)
    assert states() == ["cooling_down"]
    assert value(registry, "deployment_sessions", **labels) == 0


def test_what_is_not_there_has_no_series(metrics: Metrics, registry: CollectorRegistry) -> None:
    """No limit and no measurement is not 0: a panel would divide by it or call it fast."""
    bare, limited = deployment_of("bare"), deployment_of("limited", max_sessions=7, rpm=60, tpm=9000)
    with limited.lease() as lease:
        limited.ready(lease, 0.25)
    limited.first_audio(0.5)
    limited.tokens.add(123)
    with bare.lease() as lease:
        # A penalty, which is no measurement.
        bare.failed(lease, FAILED, 1.0, "")
    metrics.watch(lambda: [bare, limited])
    absent = {"group": "voice", "deployment": "bare"}
    there = {"group": "voice", "deployment": "limited"}
    for name, expected in (
        ("deployment_max_sessions", 7),
        ("deployment_ready_seconds", 0.25),
        ("deployment_first_audio_seconds", 0.5),
    ):
        assert value(registry, name, **absent) is None
        assert value(registry, name, **there) == expected
    assert value(registry, "deployment_limit_max", **absent, limit="rpm") is None
    assert value(registry, "deployment_limit_max", **there, limit="rpm") == 60
    assert value(registry, "deployment_limit_used", **there, limit="rpm") == 1
    assert value(registry, "deployment_limit_used", **there, limit="tpm") == 123


def test_a_deployment_that_is_listed_twice_is_shown_once(metrics: Metrics) -> None:
    """While one generation follows another an id may exist twice; a doubled series makes Prometheus refuse the page."""
    metrics.watch(lambda: [deployment_of(), deployment_of()])
    samples = [line.rpartition(b" ")[0] for line in metrics.render()[0].splitlines() if not line.startswith(b"#")]
    assert len(samples) == len(set(samples))


def test_counters_of_a_deployment_begin_at_zero(metrics: Metrics, registry: CollectorRegistry) -> None:
    """The series of the first failure exists before it happens, or ``increase()`` would not see it."""
    metrics.watch(lambda: [deployment_of()])
    metrics.render()
    labels = {"group": "voice", "deployment": "d1"}
    for outcome in Outcome:
        assert value(registry, "attempts_total", **labels, outcome=outcome) == 0
    assert value(registry, "deployment_config_alarms_total", **labels) == 0
    assert value(registry, "sessions_active", group="voice") == 0
    assert value(registry, "deployment_ejections_total", **labels, reason="timeout") == 0
    # What never ejects has no series of it.
    assert value(registry, "deployment_ejections_total", **labels, reason="rate_limited") is None


def test_what_alerts_on_its_first_event_begins_at_zero(metrics: Metrics, registry: CollectorRegistry) -> None:
    """A fault of the program, a router that is full, a beat that fails: the first one counts, so its series is there before."""
    assert value(registry, "notices_total", level="error") == 0
    assert value(registry, "requests_refused_total", status="503", code="router_overloaded") == 0
    assert value(registry, "fleet_beats_total", outcome="failed") is None
    metrics.watch_fleet(fleet_of())
    assert value(registry, "fleet_beats_total", outcome="failed") == 0


def lines_with(metrics: Metrics, text: str) -> list[str]:
    """Samples of the page that mention a text."""
    return [line for line in metrics.render()[0].decode().splitlines() if text in line and not line.startswith("#")]


def test_a_removed_deployment_is_forgotten(metrics: Metrics) -> None:
    """Nothing of it is left on the page, nothing of the others is lost, and it may come back."""
    pool = [deployment_of("d1"), deployment_of("d2")]
    metrics.watch(lambda: pool)
    for event in EVERY_EVENT:
        metrics(event)
    metrics(attempt_of(deployment="d2"))
    kept = set(lines_with(metrics, 'deployment="d2"'))
    assert lines_with(metrics, 'deployment="d1"')
    del pool[0]
    metrics.forget("d1", "voice")
    metrics.forget("never-there", "voice")
    assert lines_with(metrics, 'deployment="d1"') == []
    assert set(lines_with(metrics, 'deployment="d2"')) == kept
    assert lines_with(metrics, 'group="voice"')
    pool.insert(0, deployment_of("d1"))
    assert 'realtime_router_attempts_total{deployment="d1",group="voice",outcome="timeout"} 0.0' in lines_with(metrics, "d1")


def test_a_removed_group_is_forgotten(metrics: Metrics) -> None:
    """Its own series and those of its deployments go."""
    pool = [deployment_of("d1"), deployment_of("d2", group="other-voice")]
    metrics.watch(lambda: pool)
    for event in EVERY_EVENT:
        metrics(event)
    kept = set(lines_with(metrics, "other-voice"))
    assert kept
    del pool[0]
    metrics.forget_group("voice")
    assert lines_with(metrics, 'group="voice"') == []
    assert set(lines_with(metrics, "other-voice")) == kept


@pytest.mark.parametrize("name", ['quo"te', "back\\slash", "line\nbreak", "snow☃", "half\ud83d"])
def test_a_name_cannot_spoil_the_page(metrics: Metrics, name: str) -> None:
    """Whatever stands in a name of the configuration, the page parses and the name is one label."""
    metrics.watch(lambda: [deployment_of(name, group=name)])
    metrics(events.SessionStarted(session="s", group=name, principal="p", client="c"))
    families = {family.name: family for family in parse_text(metrics.render()[0].decode())}
    shown = name.encode("utf-8", "backslashreplace").decode()
    assert [sample.labels["group"] for sample in families[f"{PREFIX}sessions_active"].samples] == [shown]
    assert {sample.labels["deployment"] for sample in families[f"{PREFIX}deployment_state"].samples} == {shown}


# --- the process ---------------------------------------------------------------------------------


def test_reloads(metrics: Metrics, registry: CollectorRegistry) -> None:
    """A refused configuration shows, and leaves the number and the time of the one in force."""
    problem = Problem(file="f", line=1, path="p", found="x", expected="y")
    metrics.config_loaded(1, epoch_s=1000.0)
    metrics(events.Reloaded(trigger="file", generation=1, at=1500.0, errors=(problem,), restart_needed=("listen",)))
    assert value(registry, "config_last_reload_successful") == 0
    assert value(registry, "config_generation") == 1
    assert value(registry, "config_last_reload_success_timestamp_seconds") == 1000.0
    assert value(registry, "config_restart_needed") == 0
    metrics(events.Reloaded(trigger="signal", generation=2, at=2000.0, restart_needed=("listen",)))
    assert value(registry, "config_last_reload_successful") == 1
    assert value(registry, "config_generation") == 2
    assert value(registry, "config_restart_needed") == 1
    assert value(registry, "config_reloads_total", result="success", trigger="start") == 1
    assert value(registry, "config_reloads_total", result="success", trigger="signal") == 1
    assert value(registry, "config_reloads_total", result="failure", trigger="file") == 1


def test_build_lag_and_notices(metrics: Metrics, registry: CollectorRegistry) -> None:
    """The version, how late the loop was, and notices by their level."""
    metrics.loop_lag(0.3)
    for level in ("error", "loud"):
        metrics(events.Notice(level=level, event="x"))
    assert value(registry, "build_info", version="1.2.3") == 1
    assert value(registry, "event_loop_lag_seconds_bucket", le="0.25") == 0
    assert value(registry, "event_loop_lag_seconds_bucket", le="0.5") == 1
    assert value(registry, "notices_total", level="error") == 1
    assert value(registry, "notices_total", level="other") == 1


def test_labels_are_of_the_sets_that_are_documented(metrics: Metrics) -> None:
    """Words that the core does not know become ``other``, so that no fault elsewhere can fill the memory."""
    odd = "x" * 10
    hostile: Iterable[events.Event] = (
        record_of(who=odd, phase=odd, client_code=9999),
        attempt_of(odd),
        events.Ejected(deployment="d1", group="voice", reason=odd, seconds=1.0, in_a_row=1),
        events.Probed(deployment="d1", group="voice", outcome=odd, seconds=1.0),
        events.Traffic(deployment="d1", counts={(odd, odd): (1, 1)}),
    )
    for event in hostile:
        metrics(event)
    assert lines_with(metrics, odd) == []
    assert len(lines_with(metrics, '"other"')) > 5


def test_a_fleet_shows_its_mode_and_members(metrics: Metrics, registry: CollectorRegistry) -> None:
    """Fresh with the others counted, local and without an age once the picture is too old; nothing where there is no fleet."""
    assert value(registry, "fleet_members") is None
    world = World(1)
    fleet = world.processes[0].fleet
    metrics.watch_fleet(fleet)
    fleet.picture.take({}, members=2, asked_at=world.clock())
    assert value(registry, "fleet_members") == 3
    assert value(registry, "fleet_mode", mode="fresh") == 1
    assert value(registry, "fleet_mode", mode="local") == 0
    world.advance(60)
    assert value(registry, "fleet_mode", mode="local") == 1
    assert value(registry, "fleet_picture_age_seconds") == 60
    fleet.picture.drop()
    assert value(registry, "fleet_picture_age_seconds") is None
    metrics(events.FleetBeat(outcome="failed", seconds=0.1))
    metrics(events.FleetBeat(outcome="of a later version", seconds=0.1))
    assert value(registry, "fleet_beats_total", outcome="failed") == 1
    assert value(registry, "fleet_beats_total", outcome="other") == 1
    metrics(events.TurnedAway(session="s", deployment="d1", group="voice"))
    assert value(registry, "deployment_turned_away_total", group="voice", deployment="d1") == 1
