"""Sessions and latency: what callers see."""

from __future__ import annotations

from grafana.source.kit import (
    DEPLOYMENT,
    GROUP,
    HERE,
    RED,
    YELLOW,
    Json,
    bars,
    dashboard,
    graph,
    heatmap,
    now,
    q,
    quantile,
    quantiles,
    rate,
    row,
    stat,
    steps,
)
from grafana.source.overview import UNSERVED

ENDED = f"realtime_router_sessions_ended_total{{{GROUP}"


def board() -> Json:
    """The dashboard."""
    panels = [
        row("Now"),
        stat("Sessions", "Sessions under way.", q(f"sum(realtime_router_sessions_active{{{GROUP}}})"), width=4),
        stat(
            "Begun",
            "Sessions that began in the time range.",
            now(f"sum(increase(realtime_router_sessions_started_total{{{GROUP}}}[$__range]))"),
            width=4,
            decimals=0,
        ),
        stat(
            "Not served",
            "Sessions of the time range that found no deployment.",
            now(f"sum(increase({UNSERVED}[$__range])) or vector(0)"),
            width=4,
            decimals=0,
            thresholds=steps((1, RED)),
        ),
        stat(
            "Ready, median",
            "What half of the clients of the time range waited at most.",
            now(
                "histogram_quantile(0.5, sum by (le) "
                f"(increase(realtime_router_ready_seconds_bucket{{{GROUP}}}[$__range])))"
            ),
            unit="s",
            width=4,
            thresholds=steps((1, YELLOW), (3, RED)),
            empty="no session",
        ),
        stat(
            "First audio, median",
            "Of the answers of the time range.",
            now(
                "histogram_quantile(0.5, sum by (le) "
                f"(increase(realtime_router_first_audio_seconds_bucket{{{DEPLOYMENT}}}[$__range])))"
            ),
            unit="s",
            width=4,
            thresholds=steps((1, YELLOW), (2, RED)),
            empty="no answer",
        ),
        stat(
            "Length, mean",
            "Of sessions that ended in the time range and had an upstream.",
            now(
                f"sum(increase(realtime_router_session_seconds_sum{{{GROUP}}}[$__range]))"
                f" / (sum(increase(realtime_router_session_seconds_count{{{GROUP}}}[$__range])) > 0)"
            ),
            unit="s",
            width=4,
            empty="no session",
        ),
        row("From request to ready"),
        heatmap(
            "Ready",
            "How long clients waited for a ready upstream, failed attempts included. A second band above the first is a "
            "deployment that fails slowly before another serves.",
            "realtime_router_ready_seconds",
        ),
        graph(
            "Ready",
            "Quantiles of the same.",
            quantiles("realtime_router_ready_seconds", 0.5, 0.9, 0.95, 0.99),
            unit="s",
        ),
        graph(
            "Ready by group, p95",
            "What 95 % of a group's clients wait at most.",
            [q(quantile(0.95, "realtime_router_ready_seconds", by="group"), "{{group}}")],
            unit="s",
            thresholds=steps((4, RED)),
        ),
        graph(
            "Fallbacks",
            "Share of the sessions served by another deployment than the one that was tried first.",
            [
                q(
                    f'{rate("realtime_router_fallbacks_total", "group")} / '
                    f'({rate("realtime_router_ready_seconds_count", "group")} > 0)',
                    "{{group}}",
                )
            ],
            unit="percentunit",
        ),
        row("From speech to answer"),
        heatmap(
            "First audio",
            "From the end of the user's speech to the answer's first audio.",
            "realtime_router_first_audio_seconds",
            where=DEPLOYMENT,
        ),
        graph(
            "First audio",
            "Quantiles of the same.",
            quantiles("realtime_router_first_audio_seconds", 0.5, 0.9, 0.95, 0.99, where=DEPLOYMENT),
            unit="s",
        ),
        graph(
            "First audio by deployment, median",
            "Deployments of a group should be alike; strategies that compare latency move sessions to the faster.",
            [
                q(
                    quantile(0.5, "realtime_router_first_audio_seconds", by="group, deployment", where=DEPLOYMENT),
                    "{{group}} / {{deployment}}",
                )
            ],
            unit="s",
        ),
        graph(
            "Answers with audio",
            "First audios a second: turns that were answered by voice.",
            [q(rate("realtime_router_first_audio_seconds_count", "group", where=DEPLOYMENT), "{{group}}")],
            unit="cps",
            stacked=True,
        ),
        row("How sessions end"),
        graph(
            "Ended, by whom and when",
            "Who ended sessions, and in which phase: waiting (no upstream yet), idle, or turn (an answer was under way). The "
            "upstream or the router in the middle of a turn cuts somebody off.",
            [q(rate("realtime_router_sessions_ended_total", "who, phase"), "{{who}} {{phase}}")],
            unit="cps",
            stacked=True,
        ),
        bars(
            "Ended, by code",
            "Sessions that ended in the time range, by who ended them and with what: a close code, or an HTTP status where "
            "there was no WebSocket yet (499: the client left).",
            now(f"sort_desc(sum by (who, code) (increase({ENDED}}}[$__range])) > 0)", "{{who}} {{code}}"),
        ),
        graph(
            "Not served",
            "Sessions that found no deployment, a second, by what the client was told: 429 all are rate limited or full, 503 "
            "none is left, 504 time ran out.",
            [q(f"sum by (group, code) (rate({UNSERVED}[$__rate_interval]))", "{{group}} {{code}}")],
            unit="cps",
            stacked=True,
        ),
        graph(
            "Ended by the upstream, other than normally",
            "Sessions that a provider closed with another code than 1000 or 1001, or that were lost, a second.",
            [
                q(
                    f'sum by (group, code) (rate({ENDED},who="upstream",code!~"1000|1001"}}[$__rate_interval]))',
                    "{{group}} {{code}}",
                )
            ],
            unit="cps",
            stacked=True,
        ),
        graph(
            "Ended by the router, with an upstream",
            "By cause, a second: time limits (idle_timeout, max_session), drains (shutdown), operators (admin).",
            [q(rate("realtime_router_sessions_ended_by_router_total", "group, cause"), "{{group}} {{cause}}")],
            unit="cps",
            stacked=True,
        ),
        graph(
            "Requests refused",
            "Requests that never became a session, a second. Of all groups: no group is known yet.",
            [q(rate("realtime_router_requests_refused_total", "status, code", where=HERE), "{{status}} {{code}}")],
            unit="cps",
            stacked=True,
        ),
        graph(
            "Length",
            "Length of the sessions that ended and had an upstream. A plateau just below a provider's cap is that cap.",
            quantiles("realtime_router_session_seconds", 0.5, 0.9, 0.99),
            unit="s",
            width=24,
        ),
    ]
    return dashboard(
        uid="realtime-router-sessions",
        title="Realtime Router / Sessions and latency",
        description="What callers see: how long they wait, how soon they are answered, and how their sessions end.",
        panels=panels,
        variables=("job", "instance", "group", "deployment"),
    )
