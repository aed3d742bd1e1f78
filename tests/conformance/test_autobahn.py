"""The Autobahn suite's own cases, through a router in front of a strict echo server; and without it, as a control.

    kosoku ── shim ── router (a process) ── echo server
"""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.conformance.autobahn import SECTIONS, Outcome, failures, run_section, run_suite
from tests.conformance.echo import echo_server
from tests.conformance.shim import rewriting_shim
from tests.helpers.processes import router_process, written
from tests.helpers.running import closed_port, config_of

KEY = "rr-0123456789abcdef0123"
# What the cases may come to besides OK, and why; all others must be OK.
NOT_OK = {
    # The suite itself: whatever a peer does after a CLOSE, or with a close code beyond 4999.
    "7.1.6": "INFORMATIONAL",
    "7.13.1": "INFORMATIONAL",
    "7.13.2": "INFORMATIONAL",
}
# Behind a legal message comes a breach. The router ends the connection at once, as it may (RFC 6455 §7.1.7): it knows of no
# answer that is on its way. The suite prefers to see the echo first.
BEFORE_THE_ECHO = dict.fromkeys(
    ["3.2", "3.3", "3.4", "4.1.3", "4.1.4", "4.1.5", "4.2.3", "4.2.4", "4.2.5", "5.15"], "NON-STRICT"
)
# The router holds a message back until its type is told or cannot come any more, 160 bytes at the most: the upstream hears of
# these few illegal bytes with the end of the message, where the suite accepts it, and not at once, as the suite prefers.
NOT_AT_ONCE = {f"6.4.{number}": "NON-STRICT" for number in (1, 2, 3, 4)}
# With every other test these would take too long.
LONG = {"9": pytest.mark.conformance}


def id_of(section: str) -> str:
    """A section's number and name."""
    return f"{section}-{SECTIONS[section][0].replace(' ', '-')}"


def short_of_ok(outcomes: list[Outcome]) -> dict[str, str]:
    """The cases that are not plainly OK, with what they are."""
    return {outcome.case: outcome.name for outcome in outcomes if outcome.name != "OK"}


@pytest.mark.conformance
@pytest.mark.parametrize("section", SECTIONS, ids=id_of)
async def test_the_echo_server_is_strict(section: str, told: dict[str, list[Outcome]]) -> None:
    """The control: without a router in front of it, the server leaves nothing to be desired."""
    async with echo_server() as port:
        outcomes = await run_section(port, section)
    told.setdefault("echo server alone", []).extend(outcomes)
    assert not failures(outcomes), "\n" + failures(outcomes)
    assert short_of_ok(outcomes).items() <= NOT_OK.items()


@pytest.mark.parametrize("section", [pytest.param(one, marks=LONG.get(one, ()), id=id_of(one)) for one in SECTIONS])
async def test_the_router_is_as_strict(section: str, tmp_path: Path, told: dict[str, list[Outcome]]) -> None:
    """No case of the section fails or ends with a bad close."""
    async with echo_server() as upstream:
        outcomes = await run_through_a_router(section, upstream, tmp_path)
    told.setdefault("through the router", []).extend(outcomes)
    assert not failures(outcomes), "\n" + failures(outcomes)
    assert short_of_ok(outcomes).items() <= (NOT_OK | BEFORE_THE_ECHO | NOT_AT_ONCE).items()


@pytest.mark.conformance
@pytest.mark.parametrize("section", ["2", "3", "4", "5", "7"], ids=id_of)
async def test_the_router_is_strict_by_itself(section: str, tmp_path: Path, told: dict[str, list[Outcome]]) -> None:
    """In front of a server that takes everything, and alone fails, the router is what refuses each breach of framing."""
    async with echo_server(strict=False) as upstream:
        assert failures(await run_section(upstream, section))
        outcomes = await run_through_a_router(section, upstream, tmp_path)
    told.setdefault("through the router, lenient server", []).extend(outcomes)
    assert not failures(outcomes), "\n" + failures(outcomes)
    assert short_of_ok(outcomes).items() <= (NOT_OK | BEFORE_THE_ECHO).items()


async def run_through_a_router(section: str, upstream: int, folder: Path) -> list[Outcome]:
    """Run a section's cases against a router before the server on a port. The router must have nothing to say but records."""
    base = f"http://127.0.0.1:{upstream}/v1"
    config = config_of(base, provider="openai_compatible", ready="handshake", general={"master_key": KEY})
    async with router_process(written(folder, config)) as router:
        port = int(router.http.rpartition(":")[2])
        path = router.url("voice").removeprefix(f"ws://127.0.0.1:{port}")
        async with rewriting_shim(port, path=path, headers={"Authorization": f"Bearer {KEY}"}) as front:
            outcomes = await run_section(front, section)
        await router.logged("session ended", len(outcomes))
        assert await router.end(signal.SIGTERM) == 0
    assert [record["status"] for record in router.lines("session ended")] == [101] * len(outcomes)
    assert not [line for line in router.lines() if line["level"] in ("warning", "error", "critical")]
    return outcomes


async def test_no_case_is_left_out() -> None:
    """The sections are all that the suite has, compression excepted: asked of the suite itself, with nobody to talk to."""
    async with closed_port() as base:
        address = base.removeprefix("http://").removesuffix("/v1")
        outcomes = await run_suite(address, concurrency=20)
    assert not any(one.passed for one in outcomes)
    counts = Counter(one.case.partition(".")[0] for one in outcomes)
    assert counts == {**{section: count for section, (_, count) in SECTIONS.items()}, "12": 90, "13": 126}
