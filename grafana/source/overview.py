"""Overview: is it working, and if not, which dashboard tells more."""

from __future__ import annotations

from grafana.source.kit import (
    BLUE,
    GREEN,
    GREY,
    GROUP,
    HERE,
    ORANGE,
    RED,
    YELLOW,
    Column,
    Json,
    dashboard,
    graph,
    now,
    q,
    quantile,
    quantiles,
    rate,
    row,
    stat,
    steps,
    table,
    words,
)

#: Sessions that began and found no deployment: the router told them so before they had an upstream. What is left out are the
#: clients' own faults (4xx but 429).
UNSERVED = f'realtime_router_sessions_ended_total{{{GROUP},who="router",phase="waiting",code=~"429|5..|1011|1013"}}'


def board() -> Json:
    """The dashboard."""
    state = f"realtime_router_deployment_state{{{GROUP}"
    panels = [
        row("Now"),
        stat(
            "Replicas",
            "Replicas that answer a scrape. Red: a target does not.",
            now('count(up{job=~"$job",instance=~"$instance"} == 1) or vector(0)'),
            thresholds=steps((1, GREEN), base=RED),
        ),
        stat(
            "Replicas down",
            "Targets of these jobs that do not answer a scrape.",
            now('count(up{job=~"$job",instance=~"$instance"} == 0) or vector(0)'),
            thresholds=steps((1, RED)),
        ),
        stat(
            "Sessions",
            "Sessions under way, those that wait for an upstream included.",
            q(f"sum(realtime_router_sessions_active{{{GROUP}}})"),
        ),
        stat(
            "Served",
            "Of the sessions that ended in the time range, the share that had found a deployment. Below 100 % clients were told "
            "429, 503 or 504; Sessions shows with which code.",
            now(
                f"1 - (sum(increase({UNSERVED}[$__range])) or vector(0))"
                f" / (sum(increase(realtime_router_sessions_ended_total{{{GROUP}}}[$__range])) > 0)"
            ),
            unit="percentunit",
            decimals=2,
            thresholds=steps((0.95, ORANGE), (0.995, GREEN), base=RED),
            empty="no session",
        ),
        stat(
            "Ready, p95",
            "What 95 % of the clients wait at most, from their request to a ready upstream. Client libraries give up at 10 s.",
            q(quantile(0.95, "realtime_router_ready_seconds")),
            unit="s",
            thresholds=steps((1.5, YELLOW), (4, RED)),
            empty="no session",
        ),
        stat(
            "Deployments not admitting",
            "Deployments that at least one replica gives no new session: ejected, probed, cooling down, drained, in "
            "maintenance or misconfigured. Deployments tells which and why.",
            now(f'count(min by (job, group, deployment) ({state},state="admitting"}}) < 1) or vector(0)'),
            thresholds=steps((1, ORANGE)),
        ),
        stat(
            "Groups without a deployment",
            "Groups of which no deployment is admitting on any replica: their clients get no session, unless a fallback serves "
            "them.",
            now(f'count(sum by (job, group) ({state},state="admitting"}}) == 0) or vector(0)'),
            thresholds=steps((1, RED)),
        ),
        stat(
            "Configuration",
            "Whether the file that was read last was accepted by every replica. Refused: the last good one is in force; the "
            "log and GET /admin/config have every error with its line.",
            now(f"min(realtime_router_config_last_reload_successful{{{HERE}}})"),
            mappings=words({0: ("refused", RED), 1: ("accepted", GREEN)}),
        ),
        table(
            "Alerts",
            "Alerts of the rules in grafana/prometheus/rules that fire or are about to (1). Empty is good, provided that this "
            "Prometheus has the rules; docs/observe.md has a section for each.",
            [Column(name="Firing", expr='max by (alertname, severity, alertstate, group, deployment, instance) '
                    '(ALERTS{alertname=~"RealtimeRouter.+",job=~"$job|"})')],
            labels={"alertname": "Alert", "severity": "Severity", "alertstate": "State", "group": "Group",
                    "deployment": "Deployment", "instance": "Replica"},
            height=6,
        ),
        row("Traffic"),
        graph(
            "Sessions",
            "Sessions under way by group.",
            [q(f"sum by (group) (realtime_router_sessions_active{{{GROUP}}})", "{{group}}")],
            stacked=True,
        ),
        graph(
            "Sessions begun",
            "Sessions that began a second, by group. Stops while a load balancer sends nobody: look at readiness.",
            [q(rate("realtime_router_sessions_started_total", "group"), "{{group}}")],
            unit="cps",
            stacked=True,
        ),
        graph(
            "Sessions ended, by whom",
            "Who ended sessions, a second. The client is the rule; the router ends those it cannot serve, and by its time "
            "limits, a drain or an operator.",
            [q(rate("realtime_router_sessions_ended_total", "who"), "{{who}}")],
            unit="cps",
            stacked=True,
            colors={"client": GREEN, "upstream": ORANGE, "router": RED},
        ),
        graph(
            "Requests refused",
            "Requests that never became a session, a second: bad keys, unknown models, a router that is full or leaving. Of all "
            "groups: no group is known yet.",
            [q(rate("realtime_router_requests_refused_total", "status, code", where=HERE), "{{status}} {{code}}")],
            unit="cps",
            stacked=True,
        ),
        row("Failures and latency"),
        graph(
            "Failed attempts",
            "Dials that ended in anything but a ready upstream, a second. A client sees them only as waiting, while another "
            "deployment works.",
            [
                q(
                    f'sum by (outcome) (rate(realtime_router_attempts_total{{{GROUP},outcome!="ready"}}[$__rate_interval]))',
                    "{{outcome}}",
                )
            ],
            unit="cps",
            stacked=True,
        ),
        graph(
            "Fallbacks",
            "Share of the sessions that were served by another deployment than the one that was tried first.",
            [
                q(
                    f'{rate("realtime_router_fallbacks_total", "group")} / '
                    f'({rate("realtime_router_ready_seconds_count", "group")} > 0)',
                    "{{group}}",
                )
            ],
            unit="percentunit",
        ),
        graph(
            "Ready",
            "From a client's request to a ready upstream, failed attempts included.",
            quantiles("realtime_router_ready_seconds", 0.5, 0.95, 0.99),
            unit="s",
        ),
        graph(
            "First audio",
            "From the end of the user's speech to the answer's first audio.",
            quantiles("realtime_router_first_audio_seconds", 0.5, 0.95, 0.99),
            unit="s",
        ),
        row("Processes"),
        graph(
            "CPU",
            "Cores that a replica uses, all its workers together. One worker cannot use more than one.",
            [
                q(f"rate(process_cpu_seconds_total{{{HERE}}}[$__rate_interval])", "{{instance}}"),
                q(f"realtime_router_workers{{{HERE}}}", "{{instance}} workers"),
            ],
            width=6,
            dashed=[".* workers"],
        ),
        graph(
            "Event-loop lag, p99",
            "By how much timers fire late. Above 0.1 s calls stutter: too little CPU, or something blocks.",
            [q(quantile(0.99, "realtime_router_event_loop_lag_seconds", by="instance", where=HERE), "{{instance}}")],
            unit="s",
            width=6,
            thresholds=steps((0.1, RED)),
        ),
        graph(
            "Memory",
            "Resident memory of a replica, all its workers added up (pages that they share count once for each).",
            [q(f"process_resident_memory_bytes{{{HERE}}}", "{{instance}}")],
            unit="bytes",
            width=6,
        ),
        graph(
            "File descriptors",
            "Share of the file descriptors that are open. A session holds two; at the end of them new sessions get 503.",
            [q(f"process_open_fds{{{HERE}}} / process_max_fds{{{HERE}}}", "{{instance}}")],
            unit="percentunit",
            width=6,
            most=1,
            thresholds=steps((0.8, RED)),
        ),
        graph(
            "Notices",
            "Notices to the operator that belong to no session, in a step of the graph. An error is a fault of the program: "
            "please report it with the log line.",
            [q(f"sum by (level) (increase(realtime_router_notices_total{{{HERE}}}[$__rate_interval]))", "{{level}}")],
            colors={"debug": GREY, "info": BLUE, "warning": ORANGE, "error": RED},
        ),
        graph(
            "Versions",
            "Replicas of each version: two of them for longer than a deploy takes are a deploy that hangs.",
            [q(f"count by (version) (realtime_router_build_info{{{HERE}}})", "{{version}}")],
            stacked=True,
        ),
    ]
    return dashboard(
        uid="realtime-router-overview",
        title="Realtime Router / Overview",
        description="Is it working? Sessions, failures, latency and the processes, of all replicas together or of one.",
        panels=panels,
        variables=("job", "instance", "group"),
    )
