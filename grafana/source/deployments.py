"""Deployments: which of them work, how much they carry, and what is wrong with the others."""

from __future__ import annotations

from grafana.source.kit import (
    BLUE,
    DEPLOYMENT,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    YELLOW,
    Column,
    Json,
    dashboard,
    graph,
    q,
    quantile,
    rate,
    row,
    steps,
    table,
    timeline,
    words,
)

# Best first; the numbers stand for the words in the time line and the table.
STATES = {
    "admitting": GREEN,
    "probing": YELLOW,
    "cooling_down": BLUE,
    "draining": PURPLE,
    "maint": GREY,
    "ejected": ORANGE,
    "misconfigured": RED,
}
NUMBERED = words({number: (state.replace("_", " "), color) for number, (state, color) in enumerate(STATES.items())})

_BY = "group, deployment"
_NAMED = "{{group}} / {{deployment}}"


def worst_state() -> str:
    """The worst state that any replica or worker sees a deployment in, as its number."""
    one = 'max by (group, deployment) (realtime_router_deployment_state{{{where},state="{state}"}} > 0) * 0 + {number}'
    numbered = reversed(list(enumerate(STATES)))
    return "\nor ".join(one.format(where=DEPLOYMENT, state=state, number=number) for number, state in numbered)


def happened(counter: str, by: str = _BY) -> str:
    """How often something of a deployment happened in a step of the graph."""
    return f"sum by ({by}) (increase(realtime_router_deployment_{counter}_total{{{DEPLOYMENT}}}[$__rate_interval]))"


def limit_share(limit: str) -> str:
    """The share of a limit a minute that a deployment has used up where it is nearest to it; one replica's own numbers."""
    labels = f'{DEPLOYMENT},limit="{limit}"'
    ratio = f"realtime_router_deployment_limit_used{{{labels}}} / realtime_router_deployment_limit_max{{{labels}}}"
    return f"max by ({_BY}) ({ratio})"


def board() -> Json:
    """The dashboard."""
    sessions = f"realtime_router_deployment_sessions{{{DEPLOYMENT}}}"
    highest = f"max by ({_BY}) (realtime_router_deployment_{{name}}{{{{{DEPLOYMENT}}}}})"
    panels = [
        row("State"),
        timeline(
            "State",
            "The worst state that any replica sees a deployment in. Each replica ejects on its own evidence, so one red replica "
            "with green others is a fault between that replica and the provider: choose a replica above.",
            q(worst_state(), _NAMED),
            NUMBERED,
        ),
        table(
            "Now",
            "Every deployment. Sessions are those of the chosen replicas; limits and averages the highest that one of them says.",
            [
                Column(name="State", expr=worst_state(), mappings=NUMBERED),
                Column(name="Sessions", expr=f"sum by ({_BY}) ({sessions})"),
                Column(name="Most sessions", expr=highest.format(name="max_sessions")),
                Column(name="Weight", expr=highest.format(name="weight")),
                Column(name="Failures in a row", expr=highest.format(name="failures_in_a_row"), thresholds=steps((1, ORANGE))),
                Column(name="Probed in", expr=highest.format(name="ejected_seconds"), unit="s"),
                Column(name="Ready", expr=highest.format(name="ready_seconds"), unit="s", thresholds=steps((2, ORANGE))),
                Column(name="First audio", expr=highest.format(name="first_audio_seconds"), unit="s"),
            ],
            labels={"group": "Group", "deployment": "Deployment"},
        ),
        table(
            "What they are",
            "Provider and model of every deployment, and how many replicas have it. Fewer than there are: some have not read the "
            "newest file.",
            [
                Column(
                    name="Replicas",
                    expr=f"count by ({_BY}, provider, model) (realtime_router_deployment_info{{{DEPLOYMENT}}})",
                )
            ],
            labels={"group": "Group", "deployment": "Deployment", "provider": "Provider", "model": "Model"},
            height=6,
        ),
        row("Load"),
        graph(
            "Sessions",
            "Sessions that a deployment holds, dials under way included.",
            [q(f"sum by ({_BY}) ({sessions})", _NAMED)],
            stacked=True,
        ),
        graph(
            "Share of max_sessions",
            "Of the sessions that a deployment may hold, the share that is taken, on the replica that is nearest to its limit, "
            "with what the fleet holds elsewhere. Empty without limits. Of several workers with a fleet only their own are in "
            "it.",
            [
                q(
                    f"max by ({_BY}) (((realtime_router_deployment_sessions{{{DEPLOYMENT}}}"
                    f" + realtime_router_deployment_sessions_elsewhere{{{DEPLOYMENT}}}) or {sessions})"
                    f" / realtime_router_deployment_max_sessions{{{DEPLOYMENT}}})",
                    _NAMED,
                )
            ],
            unit="percentunit",
            thresholds=steps((0.9, ORANGE)),
        ),
        graph(
            "Sessions won",
            "Dials that became ready, a second: how a group's sessions are spread.",
            [
                q(
                    f'sum by ({_BY}) (rate(realtime_router_attempts_total{{{DEPLOYMENT},outcome="ready"}}[$__rate_interval]))',
                    _NAMED,
                )
            ],
            unit="cps",
            stacked=True,
        ),
        graph(
            "Weight",
            "Weights, as the file or an operator sets them and slow start after an ejection lowers them.",
            [q(f"avg by ({_BY}) (realtime_router_deployment_weight{{{DEPLOYMENT}}})", _NAMED)],
        ),
        graph(
            "Starts a minute, share of rpm",
            "Session starts of the last minute against rpm, one replica's own. Empty without such limits.",
            [q(limit_share("rpm"), _NAMED)],
            unit="percentunit",
            thresholds=steps((0.9, ORANGE)),
        ),
        graph(
            "Tokens a minute, share of tpm",
            "Tokens of the last minute against tpm, one replica's own. Empty without such limits.",
            [q(limit_share("tpm"), _NAMED)],
            unit="percentunit",
            thresholds=steps((0.9, ORANGE)),
        ),
        row("Failures"),
        graph(
            "Failed attempts",
            "Dials that ended in anything but a ready upstream, a second, by outcome; docs/metrics.md says what each means.",
            [
                q(
                    f"sum by ({_BY}, outcome) "
                    f'(rate(realtime_router_attempts_total{{{DEPLOYMENT},outcome!="ready"}}[$__rate_interval])) > 0',
                    f"{_NAMED} {{{{outcome}}}}",
                )
            ],
            unit="cps",
            stacked=True,
        ),
        graph(
            "Share of attempts that fail",
            "Of a deployment's dials, those that failed by its fault; a client that left and a client's own mistake are not.",
            [
                q(
                    f"sum by ({_BY}) (rate(realtime_router_attempts_total{{{DEPLOYMENT},"
                    'outcome!~"ready|client_gone|client_request"}[$__rate_interval]))'
                    f' / ({rate("realtime_router_attempts_total", _BY, where=DEPLOYMENT)} > 0)',
                    _NAMED,
                )
            ],
            unit="percentunit",
            most=1,
        ),
        graph(
            "Ejections",
            "Ejections by the breaker in a step of the graph, by what caused them. They come again and again: the deployment "
            "fails each probe.",
            [q(happened("ejections", f"{_BY}, reason") + " > 0", f"{_NAMED} {{{{reason}}}}")],
            width=8,
        ),
        graph(
            "Readmissions",
            "Ejected deployments that were ready again, in a step of the graph.",
            [q(happened("readmissions"), _NAMED)],
            width=8,
        ),
        graph(
            "Key, quota, access",
            "Failures that only an operator can mend, in a step of the graph: the provider refuses the key, the quota is used "
            "up, or the account may not use the model.",
            [q(happened("config_alarms"), _NAMED)],
            width=8,
            thresholds=steps((1, RED)),
        ),
        graph(
            "Cool-downs",
            "Times that a deployment said it is rate limited, in a step of the graph. Sessions go elsewhere meanwhile; a "
            "higher limit at the provider, or an rpm here, ends it.",
            [q(happened("cool_downs"), _NAMED)],
            width=8,
        ),
        graph(
            "Turned away",
            "Sessions that went on to another deployment because the fleet held all places of this one, in a step of the graph.",
            [q(happened("turned_away"), _NAMED)],
            width=8,
        ),
        graph(
            "Health checks",
            "Active probes that ended, a second, by outcome. Empty without health_check.",
            [q(rate("realtime_router_probes_total", f"{_BY}, outcome", where=DEPLOYMENT), f"{_NAMED} {{{{outcome}}}}")],
            unit="cps",
            width=8,
        ),
        row("Latency"),
        graph(
            "Dial to ready, p95",
            "What it takes a deployment to be ready, of the dials that became so.",
            [
                q(
                    quantile(0.95, "realtime_router_attempt_seconds", by=_BY, where=f'{DEPLOYMENT},outcome="ready"'),
                    _NAMED,
                )
            ],
            unit="s",
        ),
        graph(
            "First audio, p95",
            "From the end of the user's speech to the answer's first audio.",
            [q(quantile(0.95, "realtime_router_first_audio_seconds", by=_BY, where=DEPLOYMENT), _NAMED)],
            unit="s",
        ),
        graph(
            "Dial to ready, as strategies see it",
            "The peak-sensitive average that latency strategies compare: jumps up with one slow dial and fades while nothing is "
            "measured. The replica with the highest.",
            [q(highest.format(name="ready_seconds"), _NAMED)],
            unit="s",
        ),
        graph(
            "First audio, as strategies see it",
            "The same average of the time to the first audio.",
            [q(highest.format(name="first_audio_seconds"), _NAMED)],
            unit="s",
        ),
    ]
    return dashboard(
        uid="realtime-router-deployments",
        title="Realtime Router / Deployments",
        description="Which deployments work, how much they carry, how fast they are, and what is wrong with the others.",
        panels=panels,
        variables=("job", "instance", "group", "deployment"),
    )
