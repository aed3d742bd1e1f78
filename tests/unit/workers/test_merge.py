"""Several processes' metrics and views as one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from router.accounting import KNOWN_TYPES
from router.metrics import PREFIX, RESTARTS, RESTARTS_TEXT, STATES, Metrics, Page
from router.workers import merge
from tests.unit.test_metrics import EVERY_EVENT, STARTED, deployment_of, filled, record_of

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"


def process(sessions: int = 0, *, ended: int = 0) -> Metrics:
    """One process' metrics after some sessions."""
    metrics = Metrics(CollectorRegistry(), known_types=KNOWN_TYPES, version="1.2.3")
    deployment = deployment_of(max_sessions=3, rpm=10)
    metrics.watch(lambda: [deployment])
    metrics.config_loaded(1, epoch_s=1.7e9)
    for _ in range(sessions):
        metrics(STARTED)
    for number in range(ended):
        metrics(record_of(seconds=float(number)))
    return metrics


def travelled(metrics: Metrics) -> Any:
    """What a process packed, as it arrives."""
    return orjson.loads(orjson.dumps(merge.pack(metrics.collect())))


def family(name: str, kind: str, *samples: tuple[Mapping[str, str], Any], sample: str | None = None) -> list[Any]:
    """A packed family."""
    return [name, "Text.", kind, [[sample or name, dict(labels), value] for labels, value in samples]]


def values(metrics: Iterable[Metric]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample's value."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for metric in metrics:
        for sample in metric.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def value(metrics: Iterable[Metric], name: str, **labels: str) -> float | None:
    """One sample's value."""
    return values(metrics).get((name, frozenset(labels.items())))


# --- rules ---------------------------------------------------------------------------------------


def documented_gauges() -> set[str]:
    """Names of the gauges of the document."""
    rows = re.findall(r"^\| `(\w+)` \| gauge \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 20
    return set(rows)


def exported_gauges() -> set[str]:
    """Names of the gauges that a process exports when everything has happened."""
    metrics = Metrics(CollectorRegistry(), known_types=KNOWN_TYPES)
    filled(metrics)
    found = set()
    for metric in metrics.collect():
        if metric.type == "info":
            found.add(f"{metric.name}_info")
        elif metric.type not in ("counter", "histogram"):
            assert metric.type == "gauge", f"{metric.name} is of a kind that has no rule: {metric.type}"
            found.add(metric.name)
    assert len(found) > 20
    return found


def test_every_gauge_has_a_rule_of_its_own() -> None:
    """A gauge that somebody adds must be thought about: nothing is right for all of them."""
    assert documented_gauges() - set(merge.GAUGES) == set()
    assert exported_gauges() - set(merge.GAUGES) == set()


def test_no_rule_is_for_a_gauge_that_does_not_exist() -> None:
    """A rule for a misspelt name would leave the real one to the default."""
    assert set(merge.GAUGES) - exported_gauges() - documented_gauges() == set()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sessions_active", 8.0),
        ("deployment_state", 4.0),
        ("deployment_weight", 6.0),
        ("config_last_reload_successful", 2.0),
        ("no_rule_for_this_one", 8.0),
    ],
)
def test_a_gauge_follows_its_rule(name: str, expected: float) -> None:
    """Sum, mean, maximum, minimum; the sum for one that nobody has thought about."""
    workers = [[family(f"{PREFIX}{name}", "gauge", ({"group": "g"}, number))] for number in (2, 6)]
    assert value(merge.merge(workers, []), f"{PREFIX}{name}", group="g") == expected


def test_a_gauge_that_has_no_meaning_for_all_is_left_out() -> None:
    """What others hold is the siblings' own for a good part."""
    name = f"{PREFIX}deployment_sessions_elsewhere"
    assert list(merge.merge([[family(name, "gauge", ({}, 1))]], [])) == []


def test_a_mean_is_of_those_who_measured() -> None:
    """One worker without a sample is no zero."""
    name = f"{PREFIX}deployment_ready_seconds"
    workers = [[family(name, "gauge", ({"deployment": "d"}, 2.0))], [family(name, "gauge")]]
    assert value(merge.merge(workers, []), name, deployment="d") == 2.0


def test_states_are_shares_of_the_processes() -> None:
    """Of two workers one has ejected the deployment."""
    workers = [process(), process()]
    ejected = deployment_of()
    ejected.failed(ejected.lease(), _failure(), 1.0, "down")
    workers[1].watch(lambda: [ejected])
    merged = list(merge.merge([travelled(one) for one in workers], []))
    shares = {state: value(merged, f"{PREFIX}deployment_state", group="voice", deployment="d1", state=state) for state in STATES}
    assert shares == {**dict.fromkeys(STATES, 0.0), "admitting": 0.5, "ejected": 0.5}


def _failure() -> Any:
    from tests.unit.test_metrics import FAILED

    return FAILED


# --- sums ----------------------------------------------------------------------------------------


def test_counters_and_histograms_are_sums() -> None:
    """Counts, sums and every bucket."""
    workers = [travelled(process(3, ended=2)), travelled(process(5, ended=5))]
    merged = list(merge.merge(workers, []))
    assert value(merged, f"{PREFIX}sessions_started_total", group="voice") == 8
    assert value(merged, f"{PREFIX}sessions_active", group="voice") == 1
    assert value(merged, f"{PREFIX}session_seconds_count", group="voice") == 7
    assert value(merged, f"{PREFIX}session_seconds_sum", group="voice") == 0 + 1 + 0 + 1 + 2 + 3 + 4
    assert value(merged, f"{PREFIX}session_seconds_bucket", group="voice", le="1.0") == 4
    assert value(merged, f"{PREFIX}session_seconds_bucket", group="voice", le="+Inf") == 7
    assert value(merged, f"{PREFIX}workers") == 2


def test_those_who_are_gone_count_with_their_counters_alone() -> None:
    """Sessions of a dead process do not run, and those it served have been."""
    merged = list(merge.merge([travelled(process(3, ended=1))], [travelled(process(5, ended=2))]))
    assert value(merged, f"{PREFIX}sessions_started_total", group="voice") == 8
    assert value(merged, f"{PREFIX}session_seconds_count", group="voice") == 3
    assert value(merged, f"{PREFIX}sessions_active", group="voice") == 2
    assert value(merged, f"{PREFIX}workers") == 1


def test_what_only_a_dead_one_has_counted_stays() -> None:
    """A series that no living process knows."""
    name = f"{PREFIX}fallbacks"
    gone = [family(name, "counter", ({"group": "old"}, 4), sample=f"{name}_total")]
    assert value(merge.merge([travelled(process())], [gone]), f"{name}_total", group="old") == 4


def test_the_dead_are_folded_into_one() -> None:
    """Folding again and again gives what adding all at once gives."""
    dead = [travelled(process(number, ended=number)) for number in (1, 2, 3)]
    folded: merge.Packed = ()
    for one in dead:
        folded = merge.fold([folded, one])
    assert values(merge.merge([], [folded])) == values(merge.merge([], dead))
    assert {kind for _, _, kind, _ in folded} == {"counter", "histogram"}


def test_what_the_parent_counts_is_added() -> None:
    """Workers say 0 replacements each."""
    own = merge.counter(f"{PREFIX}{RESTARTS}", RESTARTS_TEXT, [({}, 3)])
    assert value(merge.merge([travelled(process()), own], []), f"{PREFIX}{RESTARTS}_total") == 3


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(("count", "say", "die"))),
        max_size=40,
    )
)
def test_nothing_that_was_shown_ever_falls(steps: list[tuple[int, str]]) -> None:
    """Whatever workers count, say or die of, in whatever order, each page's counts are at least those of the page before."""
    counts = [0, 0, 0]
    said: list[merge.Packed] = [(), (), ()]
    gone: merge.Packed = ()
    shown = 0.0
    for number, step in steps:
        if step == "count":
            counts[number] += 1
        elif step == "say":
            said[number] = merge.counter("c", "Text.", [({}, counts[number])])
        else:
            gone = merge.fold([gone, said[number]])
            said[number], counts[number] = (), 0
        # The worker of this step answers, the others hang.
        answered = merge.counter("c", "Text.", [({}, counts[number])])
        said[number] = answered
        page = value(merge.merge([answered], [gone, *(one for other, one in enumerate(said) if other != number)]), "c_total")
        assert page is not None and page >= shown
        shown = page


# --- pages ---------------------------------------------------------------------------------------


def test_one_process_merged_is_the_process() -> None:
    """Nothing changes on the way: names, kinds, texts, labels, values, order."""
    metrics = Metrics(CollectorRegistry(), known_types=KNOWN_TYPES)
    filled(metrics)
    packed = travelled(metrics)
    page = Page("")
    kept = [metric for metric in merge.merge([packed], [])]
    for metric in kept:
        page.add(metric)
    assert merge.pack(kept) == [one for one in packed if merge.GAUGES.get(one[0]) != "left out"]
    assert page.body.startswith(b"# HELP ")


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
def test_a_merged_page_is_legal(accept: str) -> None:
    """Each format's own parser takes it, with series that only one of the workers has."""
    first, second = process(2, ended=1), process(3)
    for event in EVERY_EVENT:
        second(event)
    page = Page(accept)
    for metric in merge.merge([travelled(first), travelled(second)], [travelled(process(1, ended=1))]):
        page.add(metric)
    families = list((parse_openmetrics if accept else parse_text)(page.body.decode()))
    assert len({one.name for one in families}) == len(families) > 30


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
@pytest.mark.parametrize("samples", [1, 2, 7])
def test_a_page_made_in_slices_is_the_same(accept: str, samples: int) -> None:
    """However small the slices are: no head twice, no sample lost, families without samples included."""
    metrics = Metrics(CollectorRegistry(), known_types=KNOWN_TYPES)
    filled(metrics)
    empty = Metric("empty", "No samples.", "gauge")
    whole, sliced = Page(accept), Page(accept)
    turns = 0
    for metric in [*metrics.collect(), empty]:
        whole.add(metric)
        for _ in sliced.add_in_slices(metric, samples):
            turns += 1
    assert sliced.body == whole.body
    assert sliced.body.count(b"# TYPE empty gauge\n") == 1
    assert turns > len(list(metrics.collect())) + 10


def test_a_long_family_is_merged_in_slices() -> None:
    """Whoever merges can attend to others in between; the result is that of ``merge``."""
    labels = [{"deployment": f"d{number}"} for number in range(3 * merge._SLICE_SAMPLES)]
    workers = [[family("c", "counter", *((label, number) for label in labels), sample="c_total")] for number in (1, 2)]
    slices = list(merge.merge_in_slices(workers, []))
    assert slices.count(None) == 6
    (merged,) = [metric for metric in slices if metric is not None]
    assert [sample.value for sample in merged.samples] == [3] * len(labels)


def test_numbers_that_json_has_not() -> None:
    """Infinity and NaN travel as texts."""
    metric = Metric("g", "Text.", "gauge")
    for label, number in (("a", math.inf), ("b", -math.inf), ("c", math.nan)):
        metric.add_sample("g", {"x": label}, number)
    packed = orjson.loads(orjson.dumps(merge.pack([metric])))
    merged = list(merge.merge([packed], []))
    assert value(merged, "g", x="a") == math.inf
    assert value(merged, "g", x="b") == -math.inf
    assert math.isnan(value(merged, "g", x="c") or 0.0)


@pytest.mark.parametrize(
    "odd",
    [
        [None],
        [["g", "Text.", "gauge"]],
        [["g", "Text.", "gauge", None]],
        [[1, "Text.", "gauge", []]],
        [["g", "Text.", "gauge", [None, ["g", {}], ["g", [], 1], ["g", {}, None], ["g", {}, "x"], [1, {}, 1], ["g", {}, True]]]],
        [["g", "Text.", "gauge", [["g", {"x": []}, 1], ["g", {"x": 1}, 1], ["g", {"x": None}, 1]]]],
        [["c", "Text.", "gauge", [["c", {}, 100]]]],
        [["s", "Text.", "summary", [["s", {}, 100]]]],
    ],
)
def test_what_is_no_metric_is_left_out(odd: Any) -> None:
    """Senseless parts of what a worker says hurt neither the rest of it nor the others."""
    good = merge.counter("c", "Text.", [({}, 2)])
    merged = list(merge.merge([good, odd, good], []))
    assert value(merged, "c_total") == 4
    assert {key for key in values(merged) if key[0] != "c_total"} == set()
