"""What grafana/ ships: dashboards that are up to date and that Grafana understands, queries that ask for what is exported, rules
that promtool accepts, and an alert's way from its condition to its runbook."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.metrics import STATES
from router.retry import Outcome
from router.usage import USAGE_FIELDS
from strategies.base import Freshness
from tests.helpers.parts import NODE_DIR, require
from tests.helpers.prometheus import GRAFANA, OF_THE_TARGET, ROOT, RULES, Matcher, Used, documented, parse, rules, shortened

BOARDS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
RULE_TESTS = sorted((GRAFANA / "prometheus" / "tests").glob("*.yml"))
ALERTS = tuple(rule for rule in rules() if rule.alert is not None)
RECORDED = {rule.name for rule in rules() if rule.alert is None}
DOCUMENT = (ROOT / "docs" / "observe.md").read_text(encoding="utf-8")

# Series that Prometheus makes itself.
OF_PROMETHEUS = {
    "up": OF_THE_TARGET,
    "ALERTS": frozenset({"alertname", "alertstate", "severity", "group", "deployment", "limit"}) | OF_THE_TARGET,
}
# Words that a label may be compared with, for those of a fixed list (docs/metrics.md).
WORDS = {
    "state": set(STATES),
    "outcome": {outcome.value for outcome in Outcome} | {"answered", "failed"},
    "reason": {outcome.value for outcome in Outcome},
    "mode": {freshness.value for freshness in Freshness},
    "kind": set(USAGE_FIELDS),
    "who": {"client", "upstream", "router"},
    "phase": {"waiting", "idle", "turn"},
    "direction": {"client", "upstream"},
    "limit": {"rpm", "tpm", "sessions"},
    "level": {"debug", "info", "warning", "error"},
    "result": {"success", "failure"},
}
# Grafana's names of units, of those that are of use here (@grafana/data, valueFormats/categories).
UNITS = {"short", "s", "cps", "percentunit", "bytes", "Bps", "dateTimeFromNow"}
VARIABLE = re.compile(r"\$\{?(\w+)\}?")


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The panels of a dashboard, its headlines left out."""
    return (panel for panel in board["panels"] if panel["type"] != "row")


@dataclass(frozen=True, slots=True)
class Asked:
    """A query and where it stands."""

    where: str
    expr: str


def asked() -> Iterator[Asked]:
    """Every query of panels, variables, annotations and rules."""
    for name, board in BOARDS.items():
        for panel in panels(board):
            for target in panel["targets"]:
                yield Asked(f"{name}: {panel['title']} {target['refId']}", target["expr"])
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                yield Asked(f"{name}: ${variable['name']}", variable["query"].removeprefix("label_values(").rpartition(",")[0])
        for annotation in board["annotations"]["list"]:
            yield Asked(f"{name}: {annotation['name']}", annotation["target"]["expr"])
    for rule in rules():
        yield Asked(rule.name, rule.expr)


ASKED = tuple(asked())


# --- dashboards ---------------------------------------------------------------------------------


def test_the_files_are_what_their_source_describes() -> None:
    """Whoever edits a dashboard's JSON by hand, or forgets to write it anew, is told which."""
    done = subprocess.run(
        [sys.executable, "-m", "grafana.build", "--check"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert set(BOARDS) == {"overview", "deployments", "sessions", "fleet", "usage"}


@pytest.mark.parametrize("change", ["edited", "missing", "surplus"])
def test_a_file_that_is_not_up_to_date_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """The check of the files can fail."""
    from grafana import build

    for name, board in build.built().items():
        (tmp_path / name).write_text(build.written(board), encoding="utf-8")
    if change == "edited":
        (tmp_path / "fleet.json").write_text("{}")
    elif change == "missing":
        (tmp_path / "fleet.json").unlink()
    else:
        (tmp_path / "other.json").write_text("{}")
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["build", "--check"])
    assert build.main() == 1
    monkeypatch.setattr(sys, "argv", ["build"])
    assert build.main() == 0
    monkeypatch.setattr(sys, "argv", ["build", "--check"])
    # What is too much has to be removed by hand.
    assert build.main() == int(change == "surplus")


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_dashboard_is_complete(board: dict[str, Any]) -> None:
    """Each has a lasting name, links to the others, and panels that say what they show, in which unit, with which legend."""
    assert board["uid"] == f"realtime-router-{next(name for name, one in BOARDS.items() if one is board)}"
    assert board["title"].startswith("Realtime Router / ") and board["description"] and board["refresh"]
    [link] = board["links"]
    assert link["tags"] == board["tags"] and link["includeVars"] and link["keepTime"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    assert board["panels"][0]["type"] == "row"
    for panel in panels(board):
        assert panel["title"] and panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
        units = {panel["fieldConfig"]["defaults"].get("unit")} | {
            one["value"]
            for override in panel["fieldConfig"]["overrides"]
            for one in override["properties"]
            if one["id"] == "unit"
        }
        if panel["type"] == "heatmap":
            units = {panel["options"]["yAxis"]["unit"]}
        elif panel["type"] in ("table", "state-timeline"):
            units -= {None}
        assert units <= UNITS, panel["title"]
        series = [target for target in panel["targets"] if panel["type"] in ("timeseries", "bargauge", "state-timeline")]
        # A panel with several series tells them apart.
        assert all(target["legendFormat"] != "__auto" for target in series), panel["title"]


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_panels_lie_beside_each_other(board: dict[str, Any]) -> None:
    """None lies on another one or outside the page."""
    places = [(panel["title"], panel["gridPos"]) for panel in board["panels"]]
    for title, place in places:
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["w"] > 0 and place["h"] > 0, title
    for (one, a), (other, b) in combinations(places, 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"] or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart, f"{one} and {other}"


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_variables_are_there_and_of_use(board: dict[str, Any]) -> None:
    """Queries use no variable that is not there, legends no label that the query does not leave, and every variable filters."""
    builtin = {"__rate_interval", "__range", "datasource"}
    names = {variable["name"] for variable in board["templating"]["list"]}
    used = {name for panel in panels(board) for target in panel["targets"] for name in VARIABLE.findall(target["expr"])}
    assert used <= names | builtin
    assert names - used == {"datasource"}
    # Other programs' processes have the same series as a router's, so all jobs are only those of routers.
    queried = [variable for variable in board["templating"]["list"] if variable["type"] == "query"]
    every = {variable["name"]: variable.get("allValue") for variable in queried}
    assert every == {name: None if name == "job" else ".+" for name in every}
    for panel in panels(board):
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            left = parse(target["expr"]).labels | OF_THE_TARGET
            assert shown <= left, f"{panel['title']}: {target['legendFormat']}"


def test_grafanas_own_types_accept_every_dashboard(tmp_path: Path) -> None:
    """The TypeScript types of Grafana's packages: no key that they do not know, no value that they do not take."""
    require("grafana-schema")
    assert _type_errors(tmp_path, BOARDS) == []


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ('"colorMode": "value"', '"colorMode": "valu"'),
        ('"legendFormat"', '"legendFromat"'),
        ('"custom.lineStyle"', '"custom.lineStile"'),
        ('"graphTooltip": 1', '"graphTooltip": 7'),
        ('"rowHeight": 0.85', '"rowHeight": "0.85"'),
        ('"schemaVersion": 39, ', ""),
        ('"noValue"', '"noValeu"'),
    ],
)
def test_grafanas_own_types_refuse_what_is_wrong(tmp_path: Path, found: str, wrong: str) -> None:
    """The check above can fail: a misspelt key, an unknown word, another type, something that is missing."""
    require("grafana-schema")
    text = json.dumps(BOARDS)
    assert found in text
    assert _type_errors(tmp_path, json.loads(text.replace(found, wrong)))


def _type_errors(folder: Path, boards: dict[str, Any]) -> list[str]:
    """What the compiler says of dashboards, written as constants of the types in tests/node/grafana.ts."""
    lines = [f"import type * as grafana from {json.dumps(str(NODE_DIR / 'grafana.ts'))};"]
    for name, board in boards.items():
        rest = {key: value for key, value in board.items() if key != "panels"}
        lines.append(f"export const {name}: grafana.Dashboard = {json.dumps(rest)};")
        for panel in board["panels"]:
            kind = panel["type"].title().replace("-", "")
            lines.append(f"export const {name}_{panel['id']}: grafana.{kind} = {json.dumps(panel)};")
    source = folder / "boards.ts"
    source.write_text("\n".join(lines), encoding="utf-8")
    options = "--noEmit --strict --skipLibCheck --allowImportingTsExtensions"
    options += " --module esnext --moduleResolution bundler --target es2022"
    done = subprocess.run(
        [require("node"), require("grafana-schema"), *options.split(), source], capture_output=True, text=True, timeout=100
    )
    errors = [line for line in done.stdout.splitlines() if "error TS" in line]
    assert done.returncode == int(bool(errors)) * 2, done.stdout + done.stderr
    return errors


# --- queries ------------------------------------------------------------------------------------


def labels_of(name: str) -> frozenset[str]:
    """The labels of a series that the router exports, a rule records or Prometheus makes.

    Raises:
        KeyError: there is no such series.
    """
    if name in RECORDED:
        # The first part of its name says them.
        head = name.partition(":")[0]
        return frozenset(head.split("_"))
    return {**documented(), **OF_PROMETHEUS}[name]


@pytest.mark.parametrize("one", ASKED, ids=lambda one: one.where)
def test_a_query_asks_for_what_is_exported(one: Asked) -> None:
    """Its names are in docs/metrics.md, which a test compares with the program, and so are their labels and these' words."""
    used = parse(one.expr)
    assert used.selectors
    known = {label for selector in used.selectors for label in labels_of(selector.name)}
    # Of label_replace.
    known |= {"limit"} if "label_replace" in one.expr else set()
    assert used.labels <= known, used.labels - known
    for selector in used.selectors:
        for matcher in selector.matchers:
            assert matcher.label in labels_of(selector.name), f"{selector.name} has no {matcher.label}"
            if matcher.label in WORDS and "$" not in matcher.value:
                assert set(matcher.words) <= WORDS[matcher.label], matcher


@pytest.mark.parametrize("one", [one for one in ASKED if "$" in one.expr], ids=lambda one: one.where)
def test_a_panel_shows_what_was_chosen(one: Asked) -> None:
    """Each series is filtered by every variable that it has a label for and its dashboard has."""
    board = BOARDS[one.where.partition(":")[0]]
    names = {variable["name"] for variable in board["templating"]["list"]} - {"datasource"}
    if "$" + one.where.rpartition("$")[2] in one.where and one.where.rpartition(": ")[2].startswith("$"):
        # A variable is filtered by those before it.
        order = ["job", "instance", "group", "deployment"]
        names &= set(order[: order.index(one.where.rpartition("$")[2])])
    for selector in parse(one.expr).selectors:
        if selector.name == "ALERTS":
            continue
        chosen = {matcher.label for matcher in selector.matchers if f"${matcher.label}" in matcher.value}
        assert chosen == names & labels_of(selector.name), selector


def test_the_parser_of_queries() -> None:
    """What the tests rest on: names, matchers, groupings and joins are told apart; strings are no names."""
    summed = 'sum by (a, le) (rate(x_total{job=~"$j|k",b!="{c}"}[5m] offset 1h))'
    used = parse(f"{summed} / on (d) group_left (e) y > bool 2.5 or vector(0)")
    assert [selector.name for selector in used.selectors] == ["x_total", "y"]
    assert used.selectors[0].matchers == (Matcher("job", "=~", "$j|k"), Matcher("b", "!=", "{c}"))
    assert used == Used(used.selectors, frozenset({"a", "le", "d", "e"}))
    assert Matcher("code", "=~", "429|5..|1011").words == ("429", "1011")
    with pytest.raises(ValueError, match="expected PromQL"):
        parse("x; y")


# --- rules --------------------------------------------------------------------------------------


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    """Prometheus' own checker, with its lint."""
    promtool = require("promtool")
    config = GRAFANA / "prometheus" / "prometheus.yml"
    for arguments in (["config", str(config)], ["rules", "--lint=all", "--lint-fatal", *map(str, RULES)]):
        done = subprocess.run([promtool, "check", *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_and_does_not() -> None:
    """Series that make each alert fire, and series that must not; promtool evaluates them."""
    done = subprocess.run([require("promtool"), "test", "rules", *RULE_TESTS], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    fired: dict[str, set[bool]] = {rule.name: set() for rule in ALERTS}
    for path in RULE_TESTS:
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for check in test["alert_rule_test"]:
                fired[check["alertname"]].add(bool(check["exp_alerts"]))
    assert {name for name, seen in fired.items() if seen != {True, False}} == set()


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule.name)
def test_an_alert_tells_what_to_do(rule: Any) -> None:
    """A name of ours, a severity, a text, and a section of the runbook that is there; the table of alerts has it as it is."""
    assert rule.alert is not None and rule.name.startswith("RealtimeRouter")
    assert set(rule.alert["labels"]) == {"severity"}
    annotations = rule.alert["annotations"]
    assert set(annotations) == {"summary", "description", "runbook"} and annotations["description"].endswith(".")
    assert annotations["runbook"] == f"docs/observe.md#{rule.name.lower()}"
    assert f"\n### {rule.name}\n" in DOCUMENT
    facts = f"{rule.alert['labels']['severity']} | {rule.alert.get('for', 'at once')}"
    row = f"\n| [{rule.name}](#{rule.name.lower()}) | {facts} | "
    assert row in DOCUMENT, row


def test_the_runbook_has_no_alert_that_is_not() -> None:
    """A section or row of an alert that was removed sends its reader astray."""
    names = {rule.name for rule in ALERTS}
    assert set(re.findall(r"^### (RealtimeRouter\w+)$", DOCUMENT, re.MULTILINE)) == names
    assert set(re.findall(r"^\| \[(RealtimeRouter\w+)\]", DOCUMENT, re.MULTILINE)) == names


def test_shortened_rules_are_the_same_but_for_their_times() -> None:
    """What the live test changes in a rule file: waits, ranges, steps and offsets, and neither names nor texts."""
    text = "        for: 2m\n  a:b:p95_1h offset 1h > 2 and rate(c[15m]) > 3\n  x[30m:1m]\n  5m of text\n"
    assert shortened(text, 60) == (
        "        for: 2000ms\n  a:b:p95_1h offset 60000ms > 2 and rate(c[15000ms]) > 3\n  x[30000ms:1000ms]\n  5m of text\n"
    )
    for path in RULES:
        before, after = yaml.safe_load(path.read_text(encoding="utf-8")), yaml.safe_load(shortened(path.read_text("utf-8"), 60))
        assert before != after
        for one, other in zip(before["groups"], after["groups"], strict=True):
            for rule, changed in zip(one["rules"], other["rules"], strict=True):
                assert rule.get("annotations") == changed.get("annotations")
                assert [selector.name for selector in parse(rule["expr"]).selectors] == [
                    selector.name for selector in parse(changed["expr"]).selectors
                ]


# --- provisioning -------------------------------------------------------------------------------


def test_provisioning_finds_the_dashboards() -> None:
    """The files of both kinds are of the version that Grafana reads, and name what the dashboards need."""
    folder = GRAFANA / "provisioning"
    [source] = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text("utf-8"))["datasources"]
    assert source["type"] == "prometheus" and source["access"] == "proxy" and source["isDefault"] is True
    scrape = yaml.safe_load((GRAFANA / "prometheus" / "prometheus.yml").read_text("utf-8"))
    # Shorter than the scrape interval, $__rate_interval would find a single sample.
    assert source["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]
    [provider] = yaml.safe_load((folder / "dashboards" / "realtime-router.yaml").read_text("utf-8"))["providers"]
    assert provider["type"] == "file" and provider["options"]["path"] in DOCUMENT
    [job] = scrape["scrape_configs"]
    assert job["metrics_path"] == "/metrics" and job["job_name"].startswith("realtime-router")
