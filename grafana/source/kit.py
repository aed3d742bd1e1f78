"""Dashboards as Grafana's JSON, from a few words: queries, panels and a page to put them on.

Only what differs from panel to panel is said where a dashboard is described; what all have in common (data source, legend,
tooltips, how panels fill a row) is here. The JSON is what Grafana 10.4 and newer read; tests hold it against their schema types.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Json = dict[str, Any]

#: Every dashboard has this tag, and the links on top of each are made of it.
TAG: Final = "realtime-router"
# The dashboard model's version in Grafana 10.4; newer ones read it and older ones refuse nothing of it.
_SCHEMA_VERSION: Final = 39
_COLUMNS: Final = 24

GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE, GREY = "green", "yellow", "orange", "red", "blue", "purple", "#8e8e8e"

#: What every query of a router's own series is filtered by; with ``GROUP`` and ``DEPLOYMENT`` where it has these labels.
HERE: Final = 'job=~"$job",instance=~"$instance"'
GROUP: Final = f'{HERE},group=~"$group"'
DEPLOYMENT: Final = f'{GROUP},deployment=~"$deployment"'

_SOURCE: Final[Json] = {"type": "prometheus", "uid": "${datasource}"}


# --- queries ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One query of a panel.

    Attributes:
        expr: PromQL.
        legend: of its series, ``{{label}}`` for a label.
        instant: only the value at the end of the time range.
        format: ``time_series``, ``table`` or ``heatmap``.
    """

    expr: str
    legend: str = ""
    instant: bool = False
    format: str = "time_series"


def q(expr: str, legend: str = "") -> Query:
    """A query over the time range."""
    return Query(expr=expr, legend=legend)


def now(expr: str, legend: str = "") -> Query:
    """A query of the value at the end of the time range."""
    return Query(expr=expr, legend=legend, instant=True)


def rate(metric: str, by: str, *, where: str = GROUP) -> str:
    """Return what a counter grows by in a second, summed ``by`` labels."""
    return f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))"


def quantile(share: float, histogram: str, *, by: str = "", where: str = GROUP) -> str:
    """Return a quantile of a histogram; ``by`` are labels besides the bucket's."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share:g}, sum by ({labels}) (rate({histogram}_bucket{{{where}}}[$__rate_interval])))"


def quantiles(histogram: str, *shares: float, where: str = GROUP) -> list[Query]:
    """A query for each quantile of a histogram, with a legend such as ``p95``."""
    return [q(quantile(share, histogram, where=where), f"p{share * 100:g}") for share in shares]


# --- panels -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A panel without its place, or (``kind`` is ``row``) the headline of those that follow.

    Attributes:
        kind: Grafana's name of the visualisation.
        width, height: in cells; a page has 24 columns.
        body: everything but title, place and number.
    """

    kind: str
    title: str
    width: int
    height: int
    body: Json


def row(title: str) -> Panel:
    """A headline."""
    return Panel(kind="row", title=title, width=_COLUMNS, height=1, body={"collapsed": False, "panels": []})


def steps(*values: tuple[float, str], base: str = GREEN) -> Json:
    """Thresholds: ``base`` below the first value, and from each value on its colour."""
    found: list[Json] = [{"color": base, "value": None}]
    return {"mode": "absolute", "steps": [*found, *({"color": color, "value": value} for value, color in values)]}


def words(mapping: Mapping[float, tuple[str, str]]) -> list[Json]:
    """A value mapping: number → word and colour."""
    options = {f"{value:g}": {"text": text, "color": color} for value, (text, color) in mapping.items()}
    return [{"type": "value", "options": options}]


def stat(
    title: str,
    description: str,
    query: Query,
    *,
    unit: str = "short",
    width: int = 3,
    thresholds: Json | None = None,
    mappings: Sequence[Json] = (),
    decimals: int | None = None,
    empty: str | None = None,
    sparkline: bool = True,
) -> Panel:
    """One number, coloured by its thresholds.

    Args:
        title, description: what it tells, and what is good.
        query: of the number.
        unit: Grafana's name of it.
        width: in cells.
        thresholds: see ``steps``; without them it has no colour.
        mappings: see ``words``.
        decimals: digits after the point; Grafana's choice unless given.
        empty: shown where the query returns nothing.
        sparkline: its course as a background.
    """
    defaults: Json = {"unit": unit, "mappings": list(mappings), "thresholds": thresholds or steps(base="text")}
    defaults["color"] = {"mode": "thresholds"}
    if decimals is not None:
        defaults["decimals"] = decimals
    if empty is not None:
        defaults["noValue"] = empty
    options: Json = {
        "colorMode": "value",
        "graphMode": "area" if sparkline and not query.instant else "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "auto",
        "wideLayout": True,
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
    }
    return _panel("stat", title, description, [query], defaults, options, width=width, height=4)


def graph(
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    unit: str = "short",
    width: int = 12,
    height: int = 8,
    stacked: bool = False,
    thresholds: Json | None = None,
    most: float | None = None,
    colors: Mapping[str, str] | None = None,
    dashed: Iterable[str] = (),
) -> Panel:
    """Series over time, with a legend that is a table of last, mean and highest values.

    Args:
        title, description: what it tells, and what is good.
        queries: of the series.
        unit: Grafana's name of it.
        width, height: in cells.
        stacked: areas on top of each other; only for what adds up.
        thresholds: lines at their values.
        most: upper end of the axis.
        colors: series' name → colour.
        dashed: series that are a limit of the others; drawn as dashed lines.
    """
    custom: Json = {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 40 if stacked else 8,
        "gradientMode": "none",
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "axisPlacement": "auto",
        "axisBorderShow": False,
        "scaleDistribution": {"type": "linear"},
        "thresholdsStyle": {"mode": "off" if thresholds is None else "dashed"},
    }
    defaults: Json = {"unit": unit, "min": 0, "mappings": [], "color": {"mode": "palette-classic"}, "custom": custom}
    defaults["thresholds"] = thresholds or steps()
    if most is not None:
        defaults["max"] = most
    overrides = [_override(name, "color", {"mode": "fixed", "fixedColor": color}) for name, color in (colors or {}).items()]
    for name in dashed:
        overrides.append(_override(name, "custom.lineStyle", {"fill": "dash", "dash": [8, 8]}, regex=True))
        overrides[-1]["properties"].append({"id": "custom.fillOpacity", "value": 0})
        overrides[-1]["properties"].append({"id": "custom.stacking", "value": {"mode": "none", "group": "B"}})
    options: Json = {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "mean", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return _panel("timeseries", title, description, queries, defaults, options, width=width, height=height, overrides=overrides)


def heatmap(title: str, description: str, histogram: str, *, where: str = GROUP, width: int = 12) -> Panel:
    """A histogram of seconds over time, one column a step."""
    expr = f"sum by (le) (increase({histogram}_bucket{{{where}}}[$__rate_interval]))"
    query = Query(expr=expr, legend="{{le}}", format="heatmap")
    options: Json = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "fill": "dark-orange", "exponent": 0.5, "scale": "exponential",
                  "steps": 64, "reverse": False},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": False},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": "s"},
    }
    defaults: Json = {"custom": {"hideFrom": {"legend": False, "tooltip": False, "viz": False},
                                 "scaleDistribution": {"type": "linear"}}}
    return _panel("heatmap", title, description, [query], defaults, options, width=width, height=8)


def timeline(title: str, description: str, query: Query, mappings: Sequence[Json], *, width: int = 24, height: int = 8) -> Panel:
    """Words over time, a line a series."""
    defaults: Json = {
        "mappings": list(mappings),
        "color": {"mode": "thresholds"},
        "thresholds": steps(base=GREY),
        "custom": {"fillOpacity": 75, "lineWidth": 0},
    }
    options: Json = {
        "alignValue": "left",
        "mergeValues": True,
        "rowHeight": 0.85,
        "showValue": "auto",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return _panel("state-timeline", title, description, [query], defaults, options, width=width, height=height)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table that is a number.

    Attributes:
        name: its headline.
        expr: PromQL; all columns of a table have the same labels.
        unit: Grafana's name of it.
        mappings: see ``words``.
        thresholds: see ``steps``; they colour the text.
    """

    name: str
    expr: str
    unit: str = "short"
    mappings: Sequence[Json] = ()
    thresholds: Json | None = None


def table(
    title: str, description: str, columns: Sequence[Column], *, labels: Mapping[str, str], height: int = 9, width: int = 24
) -> Panel:
    """What is now, a row for each set of labels.

    Args:
        title, description: what it tells.
        columns: the numbers.
        labels: label → headline, in the order of the columns; others are hidden.
        width, height: in cells.
    """
    queries = [Query(expr=column.expr, instant=True, format="table") for column in columns]
    renamed = {f"Value #{_ref(index)}": column.name for index, column in enumerate(columns)}
    if len(columns) == 1:
        # Of a single query Grafana does not number the value.
        renamed = {"Value": columns[0].name}
    order = [*labels, *renamed]
    organize: Json = {
        "excludeByName": {"Time": True},
        "indexByName": {name: index for index, name in enumerate(order)},
        "renameByName": {**labels, **renamed},
    }
    overrides: list[Json] = []
    for column in columns:
        one = _override(column.name, "unit", column.unit)
        if column.mappings:
            one["properties"].append({"id": "mappings", "value": list(column.mappings)})
        if column.mappings or column.thresholds:
            one["properties"].append({"id": "custom.cellOptions", "value": {"type": "color-text"}})
        if column.thresholds:
            one["properties"].append({"id": "thresholds", "value": column.thresholds})
        overrides.append(one)
    defaults: Json = {
        "mappings": [],
        "color": {"mode": "thresholds"},
        "thresholds": steps(base="text"),
        "noValue": "–",
        "custom": {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False, "filterable": True},
    }
    options: Json = {"frameIndex": 0, "showHeader": True, "cellHeight": "sm"}
    transformations: list[Json] = [{"id": "merge", "options": {}}, {"id": "organize", "options": organize}]
    panel = _panel("table", title, description, queries, defaults, options, width=width, height=height, overrides=overrides)
    panel.body["transformations"] = transformations
    return panel


def bars(title: str, description: str, query: Query, *, unit: str = "short", width: int = 12, height: int = 8) -> Panel:
    """A bar a series, of the value now."""
    defaults: Json = {"unit": unit, "min": 0, "mappings": [], "color": {"mode": "palette-classic"}, "thresholds": steps()}
    options: Json = {
        "displayMode": "basic",
        "maxVizHeight": 300,
        "minVizHeight": 16,
        "minVizWidth": 8,
        "namePlacement": "auto",
        "orientation": "horizontal",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "showUnfilled": True,
        "sizing": "auto",
        "valueMode": "color",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
    }
    return _panel("bargauge", title, description, [query], defaults, options, width=width, height=height)


def _panel(
    kind: str,
    title: str,
    description: str,
    queries: Sequence[Query],
    defaults: Json,
    options: Json,
    *,
    width: int,
    height: int,
    overrides: Sequence[Json] = (),
) -> Panel:
    body: Json = {
        "description": description,
        "datasource": dict(_SOURCE),
        "fieldConfig": {"defaults": defaults, "overrides": list(overrides)},
        "options": options,
        "targets": [_target(query, _ref(index)) for index, query in enumerate(queries)],
    }
    return Panel(kind=kind, title=title, width=width, height=height, body=body)


def _target(query: Query, ref: str) -> Json:
    return {
        "refId": ref,
        "datasource": dict(_SOURCE),
        "editorMode": "code",
        "expr": query.expr,
        "format": query.format,
        "instant": query.instant,
        "range": not query.instant,
        "legendFormat": query.legend or "__auto",
    }


def _ref(index: int) -> str:
    return chr(ord("A") + index)


def _override(name: str, property_id: str, value: Any, *, regex: bool = False) -> Json:
    matcher = {"id": "byRegexp" if regex else "byName", "options": name}
    return {"matcher": matcher, "properties": [{"id": property_id, "value": value}]}


# --- pages --------------------------------------------------------------------------------------


def variable(name: str, label: str, metric: str, where: str = "", *, all_of: str | None = ".+") -> Json:
    """A template variable with the values that a label has now, all of them chosen at first.

    Args:
        name: of the label; queries write it so.
        label: as the reader sees it.
        metric: that has the label.
        where: matchers of other variables, without braces.
        all_of: stands for all in queries; ``None``: the values that there are.
    """
    query = f"label_values({metric}{{{where}}}, {name})"
    found: Json = {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": dict(_SOURCE),
        "query": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {"text": ["All"], "value": ["$__all"]},
        "options": [],
        "regex": "",
        "hide": 0,
    }
    # With any value the series of what is gone since are there in the past.
    return found if all_of is None else {**found, "allValue": all_of}


_INFO: Final = "realtime_router_deployment_info"
_VARIABLES: Final[Mapping[str, Json]] = {
    # Not any job: up and process_… are not a router's only.
    "job": variable("job", "Job", "realtime_router_build_info", all_of=None),
    "instance": variable("instance", "Replica", "realtime_router_build_info", 'job=~"$job"'),
    "group": variable("group", "Group", _INFO, HERE),
    "deployment": variable("deployment", "Deployment", _INFO, GROUP),
}


def dashboard(
    *, uid: str, title: str, description: str, panels: Sequence[Panel], variables: Sequence[str], since: str = "now-3h"
) -> Json:
    """Return a dashboard as Grafana's JSON.

    Panels are put from left to right; one that does not fit begins a new line below the highest of the last.

    Args:
        uid: names it in links, for good.
        title, description: for the reader.
        panels: in order, headlines (``row``) among them.
        variables: of ``job``, ``instance``, ``group``, ``deployment``.
        since: begin of the time range.
    """
    source: Json = {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "multi": False,
        "includeAll": False,
        "hide": 0,
        "options": [],
        "current": {"text": "", "value": ""},
    }
    link: Json = {
        "type": "dashboards",
        "title": "Realtime Router",
        "tags": [TAG],
        "asDropdown": False,
        "icon": "external link",
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "tooltip": "",
    }
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": [TAG],
        "schemaVersion": _SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "fiscalYearStartMonth": 0,
        "liveNow": False,
        "refresh": "30s",
        "time": {"from": since, "to": "now"},
        "timepicker": {},
        "timezone": "",
        "weekStart": "",
        "annotations": {"list": [_reloads()]},
        "links": [link],
        "templating": {"list": [source, *(_VARIABLES[name] for name in variables)]},
        "panels": _placed(panels),
    }


def _reloads() -> Json:
    return {
        "name": "Configuration accepted",
        "datasource": dict(_SOURCE),
        "enable": True,
        "hide": False,
        "iconColor": "blue",
        "target": {
            "refId": "Anno",
            "expr": f"changes(realtime_router_config_last_reload_success_timestamp_seconds{{{HERE}}}[2m]) > 0",
        },
        "step": "30s",
        "titleFormat": "Configuration accepted",
        "textFormat": "{{instance}}",
    }


def _placed(panels: Sequence[Panel]) -> list[Json]:
    placed: list[Json] = []
    x = y = lowest = 0
    for number, panel in enumerate(panels, 1):
        if panel.kind == "row" or x + panel.width > _COLUMNS:
            x, y = 0, lowest
        place = {"h": panel.height, "w": panel.width, "x": x, "y": y}
        placed.append({"id": number, "type": panel.kind, "title": panel.title, "gridPos": place, **panel.body})
        x += panel.width
        lowest = max(lowest, y + panel.height)
    return placed
