"""Fleet: replicas and their workers, what they know of each other, and their configuration."""

from __future__ import annotations

from grafana.source.kit import (
    BLUE,
    DEPLOYMENT,
    GREEN,
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
    rate,
    row,
    stat,
    steps,
    table,
    timeline,
    words,
)

# Best first.
MODES = {"fresh": GREEN, "ageing": YELLOW, "local": RED}
_NO_FLEET = "no fleet"
_NUMBERED = words({number: (mode, color) for number, (mode, color) in enumerate(MODES.items())})


def worst_mode() -> str:
    """The worst mode that any worker of a replica is in, as its number."""
    one = 'max by (instance) (realtime_router_fleet_mode{{{where},mode="{mode}"}} > 0) * 0 + {number}'
    return "\nor ".join(
        one.format(where=HERE, mode=mode, number=number) for number, mode in reversed(list(enumerate(MODES)))
    )


def board() -> Json:
    """The dashboard."""
    beats = f"realtime_router_fleet_beats_total{{{HERE}"
    yes = words({0: ("no", GREEN), 1: ("yes", ORANGE)})
    panels = [
        row("Now"),
        stat(
            "Replicas",
            "Replicas that answer a scrape.",
            now(f"count(realtime_router_build_info{{{HERE}}})"),
            width=4,
            empty="none",
        ),
        stat("Processes", "Processes that serve: a replica's workers.", q(f"sum(realtime_router_workers{{{HERE}}})"), width=4),
        stat(
            "Members",
            "Processes of the fleet as its members see it: replicas that share one Redis, or the workers of one replica. Fewer "
            "than processes: not all share, or some have just begun.",
            q(f"max(realtime_router_fleet_members{{{HERE}}})"),
            width=4,
            empty=_NO_FLEET,
        ),
        stat(
            "Knowledge",
            "How far the replicas know of each other, the worst. Fresh: up to 2 s old. Ageing: up to 10 s. Local: each acts by "
            "its own numbers, for Redis is away or a beat never came.",
            now(f"max({worst_mode()})"),
            mappings=_NUMBERED,
            width=4,
            empty=_NO_FLEET,
        ),
        stat(
            "Draining",
            "Replicas that take no new sessions and let the running ones end.",
            now(f"sum(realtime_router_draining{{{HERE}}} > bool 0)"),
            width=4,
            thresholds=steps((1, BLUE)),
            empty="0",
        ),
        stat(
            "Need a restart",
            "Replicas whose file differs from what is in force in a key that only a restart applies; GET /admin/config names it.",
            now(f"sum(realtime_router_config_restart_needed{{{HERE}}})"),
            width=4,
            thresholds=steps((1, ORANGE)),
            empty="0",
        ),
        table(
            "Replicas",
            "Every replica. Generations count from each start; what should be alike is when the newest file was accepted.",
            [
                Column(name="Up since", expr=f"min by (job, instance) (process_start_time_seconds{{{HERE}}}) * 1000",
                       unit="dateTimeFromNow"),
                Column(name="Workers", expr=f"sum by (job, instance) (realtime_router_workers{{{HERE}}})"),
                Column(name="Sessions", expr=f"sum by (job, instance) (realtime_router_sessions_active{{{GROUP}}})"),
                Column(name="Members", expr=f"max by (job, instance) (realtime_router_fleet_members{{{HERE}}})"),
                Column(name="Picture's age", expr=f"max by (job, instance) (realtime_router_fleet_picture_age_seconds{{{HERE}}})",
                       unit="s", thresholds=steps((2, YELLOW), (10, RED))),
                Column(name="Generation", expr=f"max by (job, instance) (realtime_router_config_generation{{{HERE}}})"),
                Column(name="File accepted", unit="dateTimeFromNow", expr="max by (job, instance) "
                       f"(realtime_router_config_last_reload_success_timestamp_seconds{{{HERE}}}) * 1000"),
                Column(name="Last file", expr=f"min by (job, instance) (realtime_router_config_last_reload_successful{{{HERE}}})",
                       mappings=words({0: ("refused", RED), 1: ("accepted", GREEN)})),
                Column(name="Restart needed", expr=f"max by (job, instance) (realtime_router_config_restart_needed{{{HERE}}})",
                       mappings=yes),
                Column(name="Draining", expr=f"max by (job, instance) (realtime_router_draining{{{HERE}}})", mappings=yes),
            ],
            labels={"job": "Job", "instance": "Replica"},
        ),
        row("Load"),
        graph(
            "Sessions by replica",
            "Sessions under way. Replicas behind one load balancer should be alike.",
            [q(f"sum by (instance) (realtime_router_sessions_active{{{GROUP}}})", "{{instance}}")],
            stacked=True,
        ),
        graph(
            "Sessions begun by replica",
            "Sessions that began a second: what the load balancer sends.",
            [q(rate("realtime_router_sessions_started_total", "instance"), "{{instance}}")],
            unit="cps",
            stacked=True,
        ),
        graph(
            "Sessions of a deployment, by replica",
            "Who holds what; choose a group and a deployment above.",
            [
                q(
                    f"sum by (instance, deployment) (realtime_router_deployment_sessions{{{DEPLOYMENT}}})",
                    "{{instance}} {{deployment}}",
                )
            ],
            stacked=True,
        ),
        graph(
            "What the others hold, as heard",
            "Sessions that the other processes of the fleet hold of a deployment, as a replica last heard. Absent without a "
            "fleet and for replicas with several workers.",
            [
                q(
                    f"sum by (instance, deployment) (realtime_router_deployment_sessions_elsewhere{{{DEPLOYMENT}}})",
                    "{{instance}} {{deployment}}",
                )
            ],
        ),
        row("What they know of each other"),
        timeline(
            "Knowledge",
            "Fresh, ageing or local, the worst of a replica's workers. Empty without a fleet.",
            q(worst_mode(), "{{instance}}"),
            _NUMBERED,
            width=12,
        ),
        graph(
            "Members, as seen by each replica",
            "Processes of the fleet. Lines that part: they do not see the same Redis.",
            [q(f"realtime_router_fleet_members{{{HERE}}}", "{{instance}}")],
        ),
        graph(
            "Age of the picture",
            "Age of what is known of the others; a beat comes once a second.",
            [q(f"realtime_router_fleet_picture_age_seconds{{{HERE}}}", "{{instance}}")],
            unit="s",
            width=8,
            thresholds=steps((2, YELLOW), (10, RED)),
        ),
        graph(
            "Beats that failed",
            "Share of the beats that were not answered.",
            [
                q(
                    f'sum by (instance) (rate({beats},outcome="failed"}}[$__rate_interval]))'
                    f" / (sum by (instance) (rate({beats}}}[$__rate_interval])) > 0)",
                    "{{instance}}",
                )
            ],
            unit="percentunit",
            width=8,
            most=1,
        ),
        graph(
            "A beat's time, p99",
            "From a beat to its answer or failure. No session waits for it.",
            [q(quantile(0.99, "realtime_router_fleet_beat_seconds", by="instance", where=HERE), "{{instance}}")],
            unit="s",
            width=8,
        ),
        graph(
            "Turned away",
            "Sessions that went on to another deployment because the fleet held all places, in a step of the graph.",
            [
                q(
                    "sum by (instance, deployment) "
                    f"(increase(realtime_router_deployment_turned_away_total{{{DEPLOYMENT}}}[$__rate_interval]))",
                    "{{instance}} {{deployment}}",
                )
            ],
            width=24,
        ),
        row("Processes and configuration"),
        graph(
            "Workers restarted",
            "Workers that ended on their own and were replaced, in a step of the graph. The log has the reason; their sessions "
            "are lost.",
            [q(f"increase(realtime_router_worker_restarts_total{{{HERE}}}[$__rate_interval])", "{{instance}}")],
            width=8,
            thresholds=steps((1, RED)),
        ),
        graph(
            "Reloads",
            "Files that were read, in a step of the graph.",
            [
                q(
                    f"sum by (result) (increase(realtime_router_config_reloads_total{{{HERE}}}[$__rate_interval]))",
                    "{{result}}",
                )
            ],
            width=8,
            colors={"success": GREEN, "failure": RED},
        ),
        graph(
            "Generation",
            "Number of the configuration in force, from each replica's start.",
            [q(f"realtime_router_config_generation{{{HERE}}}", "{{instance}}")],
            width=8,
        ),
    ]
    return dashboard(
        uid="realtime-router-fleet",
        title="Realtime Router / Fleet",
        description="Replicas and their workers: load, what they know of each other, and their configuration.",
        panels=panels,
        variables=("job", "instance", "group", "deployment"),
    )
