"""Usage: tokens, audio, events and bytes, and where they go."""

from __future__ import annotations

from grafana.source.kit import DEPLOYMENT, GREEN, GROUP, HERE, ORANGE, Json, dashboard, graph, now, q, rate, row, stat, steps

_TOKENS = "realtime_router_tokens_total"


def tokens(kind: str, by: str) -> str:
    """Tokens a minute of kinds (a regular expression) by labels."""
    return f'sum by ({by}) (rate({_TOKENS}{{{DEPLOYMENT},kind=~"{kind}"}}[$__rate_interval])) * 60'


def spent(kind: str) -> str:
    """Tokens of a kind in the time range."""
    return f'sum(increase({_TOKENS}{{{DEPLOYMENT},kind="{kind}"}}[$__range]))'


def board() -> Json:
    """The dashboard."""
    panels = [
        row("In the time range"),
        stat("Tokens", "All tokens that the providers reported.", now(spent("total")), width=4, decimals=0),
        stat("Input", "Input tokens, cached ones included.", now(spent("input")), width=4, decimals=0),
        stat("Output", "Output tokens.", now(spent("output")), width=4, decimals=0),
        stat(
            "Cached",
            "Share of the input that the provider had cached, which it bills at a fraction.",
            now(f"{spent('cached')} / ({spent('input')} > 0)"),
            unit="percentunit",
            width=4,
            empty="0 %",
        ),
        stat(
            "Transcription by time",
            "Seconds of transcription where that is billed by time.",
            now(f"sum(increase(realtime_router_transcription_seconds_total{{{DEPLOYMENT}}}[$__range]))"),
            unit="s",
            width=4,
            empty="0 s",
        ),
        stat(
            "Tokens a session",
            "Tokens for each session that had an upstream and ended.",
            now(
                f'sum(increase({_TOKENS}{{{DEPLOYMENT},kind="total"}}[$__range]))'
                f" / (sum(increase(realtime_router_session_seconds_count{{{GROUP}}}[$__range])) > 0)"
            ),
            width=4,
            decimals=0,
            empty="no session",
        ),
        row("Tokens"),
        graph(
            "Tokens by group",
            "Tokens a minute, input and output together.",
            [q(tokens("total", "group"), "{{group}}")],
            stacked=True,
        ),
        graph(
            "Tokens by deployment",
            "Tokens a minute, input and output together.",
            [q(tokens("total", "group, deployment"), "{{group}} / {{deployment}}")],
            stacked=True,
        ),
        graph(
            "Tokens by provider and model",
            "Tokens a minute by what bills them.",
            [
                q(
                    f'sum by (provider, model) (rate({_TOKENS}{{{DEPLOYMENT},kind="total"}}[$__rate_interval])'
                    " * on (job, instance, group, deployment) group_left (provider, model) "
                    f"realtime_router_deployment_info{{{DEPLOYMENT}}}) * 60",
                    "{{provider}} {{model}}",
                )
            ],
            stacked=True,
        ),
        graph(
            "Tokens by kind",
            "Tokens a minute by their parts: these add up to the total, but for a transcription's own model.",
            [q(tokens("input_text|input_audio|input_image|output_text|output_audio", "kind"), "{{kind}}")],
            stacked=True,
        ),
        graph(
            "Cached input",
            "Share of the input tokens that the provider had cached. It falls when something at the begin of conversations "
            "changes.",
            [q(f'{tokens("cached", "group")} / ({tokens("input", "group")} > 0)', "{{group}}")],
            unit="percentunit",
            most=1,
        ),
        graph(
            "Transcription",
            "Transcription: tokens a minute of its own model, and seconds a minute where it is billed by time.",
            [
                q(tokens("transcription_input|transcription_output", "kind"), "{{kind}}"),
                q(
                    f"sum(rate(realtime_router_transcription_seconds_total{{{DEPLOYMENT}}}[$__rate_interval])) * 60",
                    "seconds",
                ),
            ],
        ),
        row("Limits a minute"),
        graph(
            "Tokens of the last minute, against tpm",
            "Dashed: the limit. Each replica's own tokens; in a fleet their sum is held against one limit. Empty lines without "
            "limits.",
            [
                q(
                    f'sum by (group, deployment) (realtime_router_deployment_limit_used{{{DEPLOYMENT},limit="tpm"}})',
                    "{{group}} / {{deployment}}",
                ),
                q(
                    f'max by (group, deployment) (realtime_router_deployment_limit_max{{{DEPLOYMENT},limit="tpm"}})',
                    "{{group}} / {{deployment}} limit",
                ),
            ],
            dashed=[".* limit"],
        ),
        graph(
            "Starts of the last minute, against rpm",
            "Dashed: the limit. Each replica's own starts; in a fleet their sum is held against one limit. Empty lines without "
            "limits.",
            [
                q(
                    f'sum by (group, deployment) (realtime_router_deployment_limit_used{{{DEPLOYMENT},limit="rpm"}})',
                    "{{group}} / {{deployment}}",
                ),
                q(
                    f'max by (group, deployment) (realtime_router_deployment_limit_max{{{DEPLOYMENT},limit="rpm"}})',
                    "{{group}} / {{deployment}} limit",
                ),
            ],
            dashed=[".* limit"],
        ),
        row("Events and bytes (of all groups: they are not counted by group)"),
        graph(
            "Events",
            "Messages a second by the side they came from.",
            [q(rate("realtime_router_events_total", "direction", where=HERE), "{{direction}}")],
            unit="cps",
            colors={"client": GREEN, "upstream": ORANGE},
        ),
        graph(
            "Bytes",
            "Payload bytes a second by the side they came from; most is audio.",
            [q(rate("realtime_router_event_bytes_total", "direction", where=HERE), "{{direction}}")],
            unit="Bps",
            colors={"client": GREEN, "upstream": ORANGE},
        ),
        graph(
            "Events by type, the ten most frequent",
            "Messages a second by side and event type.",
            [
                q(
                    f"topk(10, {rate('realtime_router_events_total', 'direction, type', where=HERE)})",
                    "{{direction}} {{type}}",
                )
            ],
            unit="cps",
        ),
        graph(
            "Errors that upstreams sent",
            "error events from upstreams, a second: many are answers to a client's mistake and end nothing.",
            [
                q(
                    "sum by (instance) (rate(realtime_router_events_total"
                    f'{{{HERE},direction="upstream",type="error"}}[$__rate_interval]))',
                    "{{instance}}",
                )
            ],
            unit="cps",
            thresholds=steps(),
        ),
    ]
    return dashboard(
        uid="realtime-router-usage",
        title="Realtime Router / Usage",
        description="Tokens, transcription, events and bytes, by group, deployment, provider and model.",
        panels=panels,
        variables=("job", "instance", "group", "deployment"),
        since="now-24h",
    )
