"""What ``ctl`` and ``top`` make of documents: addresses, cells, rates, pictures that fit."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from router.ctl import tables
from router.ctl.client import CtlError, base_of
from router.ctl.run import rendered
from router.ctl.screen import Sample, picture, rates


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:4000", "http://127.0.0.1:4000/"),
        ("https://router.example", "https://router.example/"),
        ("ws://[::1]:4000/v1/realtime", "http://[::1]:4000/"),
        ("wss://router.example/voice/v1/realtime/", "https://router.example/voice"),
        ("http://router.example/voice/?x=1#y", "http://router.example/voice"),
    ],
)
def test_the_address_of_a_router(url: str, base: str) -> None:
    """With a prefix or without, as an operator's or as a client's."""
    assert str(base_of(url)) == base


@pytest.mark.parametrize("url", ["", "router", "127.0.0.1:4000", "ftp://x", "http://", "http://x:y", "http://u:p@x", "http://[::1"])
def test_what_is_no_address(url: str) -> None:
    """The command line is at fault, and what may be a password is not shown."""
    with pytest.raises(CtlError) as raised:
        base_of(url)
    assert raised.value.usage and "u:p" not in str(raised.value)


def deployment(id: str = "d", **facts: Any) -> dict[str, Any]:
    """As the admin API shows it."""
    return {
        "id": id,
        "state": "admitting",
        "obstacle": None,
        "reason": None,
        "weight": 1.0,
        "sessions": 1,
        "max_sessions": None,
        "ready_s": 0.3,
        "first_audio_s": None,
        "available_in_s": None,
        "ejected_s": None,
        "attempts": {},
        "override": {"state": None, "weight": None},
        "removed": False,
        **facts,
    }


def session(id: str, **facts: Any) -> dict[str, Any]:
    """As the admin API shows it."""
    return {
        "session": id,
        "group": "voice",
        "deployment": "d",
        "principal": "team",
        "client": "203.0.113.9",
        "phase": "idle",
        "seconds": 75.0,
        "turns": 2,
        "client_bytes": 0,
        "upstream_bytes": 0,
        **facts,
    }


def sample(at: float, *deployments: dict[str, Any], sessions: list[dict[str, Any]] | None = None) -> Sample:
    """What a router says at one moment."""
    shown = sessions or []
    last = {"successful": False, "errors": [{}], "warnings": []}
    return Sample(
        at=at,
        deployments={"generation": 1, "fleet": None, "groups": [{"group": "voice", "deployments": list(deployments)}]},
        sessions={"sessions": shown, "total": len(shown)},
        config={"last_reload": last, "restart_needed": []},
    )


def test_rates_are_what_changed_a_second() -> None:
    """Counters that fell belong to a process that began anew; what is new has counted from nothing; no time is no rate."""
    before = sample(
        10.0,
        deployment("a", attempts={"ready": 10, "timeout": 4}),
        deployment("b", attempts={"ready": 9}),
        sessions=[session("s", client_bytes=1000, upstream_bytes=500)],
    )
    after = sample(
        12.0,
        deployment("a", attempts={"ready": 16, "timeout": 5, "client_gone": 3}),
        deployment("b", attempts={"ready": 2}),
        deployment("c", attempts={"refused": 6}),
        sessions=[session("t", client_bytes=400), session("s", client_bytes=1200, upstream_bytes=100)],
    )
    change = rates(before, after)
    assert change is not None
    assert change.ready == {"a": 3.0, "b": 1.0, "c": 0.0} and change.failed == {"a": 0.5, "b": 0.0, "c": 3.0}
    assert (change.client_bytes, change.upstream_bytes) == (300.0, 50.0)
    assert rates(after, after) is None


@pytest.mark.parametrize("height", [8, 12, 24, 60])
@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize(("deployments", "sessions"), [(0, 0), (1, 1), (40, 0), (40, 100), (3, 100)])
def test_a_picture_fits(width: int, height: int, deployments: int, sessions: int) -> None:
    """As many lines and columns as there are, with what is left out counted; at 8 lines a little of each."""
    names = [deployment(f"voice-agent-gpt-realtime-{number}", reason="unreachable") for number in range(deployments)]
    shown = sample(1.0, *names, sessions=[session(f"rs_{number:020x}") for number in range(sessions)])
    console = Console(width=width, height=height, force_terminal=False)
    with console.capture() as captured:
        console.print(picture(shown, None, where="http://127.0.0.1:4000", width=width, height=height, error="gone"))
    lines = captured.get().rstrip("\n").split("\n")
    assert max(map(len, lines)) <= width
    assert len(lines) <= max(height, 13)
    if deployments > height:
        assert any("more deployments" in line for line in lines)


@pytest.mark.parametrize(
    ("override", "facts", "why"),
    [
        ({"state": "maint", "weight": 5.0}, {"state": "maint", "obstacle": "maint"}, "by operator: maint and weight 5"),
        ({"state": None, "weight": 0.5}, {"obstacle": "full"}, "by operator: weight 0.5, full"),
        ({"state": "drain", "weight": None}, {"state": "draining", "obstacle": "draining"}, "by operator: drain"),
        ({"state": None, "weight": None}, {"state": "ejected", "reason": "timeout", "ejected_s": 12.0}, "timeout, 12 s left"),
    ],
)
def test_why_a_deployment_is_as_it_is(override: dict[str, Any], facts: dict[str, Any], why: str) -> None:
    """A number says what it is the number of."""
    assert tables.why_of(deployment(override=override, **facts)) == why


def test_nothing_in_a_cell_steers_the_terminal() -> None:
    """Control sequences, line ends and markup are shown as what they are."""
    console = Console(width=200, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(tables.sessions({"sessions": [session("x\x1b]0;t\x07\r\n[red]y", client="\x9b31m")], "total": 1}))
    out = captured.get()
    assert "\x07" not in out and "\x9b" not in out and "\x1b]" not in out and "\r" not in out
    assert "[red]y" in out and "\\x1b]0;t" in out


_STEERS = "\x1b]0;t\x07"


@pytest.mark.parametrize(
    ("table", "document"),
    [
        ("deployments", {"groups": [{"group": "g", "strategy": "", "aliases": [], "fallbacks": [], "deployments": [_STEERS]}]}),
        ("deployments", {"groups": [], "workers": [{"worker": _STEERS, "answered": False}]}),
        (
            "decisions",
            {
                "decisions": [
                    {
                        "at": 1.0,
                        "session": "s",
                        "group": "g",
                        "in_group": None,
                        "attempt": _STEERS,
                        "chosen": None,
                        "why": "",
                        "candidates": [],
                        "passed_over": [],
                    }
                ]
            },
        ),
    ],
    ids=["sessions of a deployment", "worker", "attempt"],
)
def test_what_should_be_a_number_does_not_steer_the_terminal(table: str, document: dict[str, Any]) -> None:
    """Whoever answers may write a text where a number is expected; it is shown escaped like any other."""
    if table == "deployments" and document["groups"]:
        document["groups"][0]["deployments"] = [deployment(sessions=_STEERS)]
    console = Console(width=200, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(tables.TABLES[table](document))
    out = captured.get()
    assert "\x07" not in out and "\x1b]" not in out and "\\x1b]0;t" in out


def test_the_head_of_a_picture_does_not_steer_the_terminal() -> None:
    """Its totals are escaped as well."""
    shown = sample(1.0, deployment())
    shown = replace(
        shown, deployments={**shown.deployments, "generation": _STEERS}, sessions={**shown.sessions, "total": _STEERS}
    )
    console = Console(width=200, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(picture(shown, None, where="http://127.0.0.1:4000", width=200, height=24))
    assert "\x07" not in captured.get() and "\x1b]" not in captured.get()


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), -float("inf"), [], {}])
def test_an_answer_that_is_not_understood_is_told_in_words(seconds: object) -> None:
    """What JSON can hold beyond numbers ends in a sentence for the operator or an empty cell, never in a traceback."""
    with contextlib.suppress(CtlError):
        rendered(tables.sessions, {"sessions": [session("s", seconds=seconds)], "total": 1})


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.345, "0.34 s"), (12.0, "12 s"), (75.9, "1:15"), (7384.0, "2:03:04"), (None, ""), (True, "")]
)
def test_durations(seconds: object, shown: str) -> None:
    """For people."""
    assert str(tables.duration(seconds)) in (shown, shown.replace("0.34", "0.35"))


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (20 << 20, "20 MiB"), (3 << 30, "3.0 GiB")]
)
def test_sizes(count: int, shown: str) -> None:
    """For people."""
    assert str(tables.size(count)) == shown
