"""The Autobahn suite against a port: its cases by section, and what became of them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]

# All but compression, 12 and 13, which the router does not negotiate; with the number of cases in each, so that none gets lost.
SECTIONS: Final = {
    "1": ("framing", 16),
    "2": ("pings and pongs", 11),
    "3": ("reserved bits", 7),
    "4": ("opcodes", 10),
    "5": ("fragmentation", 20),
    "6": ("UTF-8", 145),
    "7": ("close handling", 37),
    "9": ("limits and performance", 54),
    "10": ("auto-fragmentation", 1),
}
# Cases that ask for answers within a second run beside few others.
CONCURRENCY: Final = 4
# For one section; each case has a limit of its own, the longest of 480 s, which only a fault reaches.
PATIENCE_S: Final = 100.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the suite says of a case.

    Attributes:
        case: its id.
        behavior: OK, NON-STRICT, INFORMATIONAL, or one that fails.
        close: the same for the end of the connection: OK, INFORMATIONAL, or one that fails.
        passed: both are fine.
        details: one line for each fact that helps to find out why it did not.
    """

    case: str
    behavior: str
    close: str
    passed: bool
    details: tuple[str, ...]

    @property
    def name(self) -> str:
        """Both verdicts."""
        return self.behavior if self.close in ("OK", self.behavior) else f"{self.behavior}, close {self.close}"


async def run_suite(address: str, *patterns: str, concurrency: int = CONCURRENCY) -> list[Outcome]:
    """Run the suite's cases against a server.

    Args:
        address: host:port.
        patterns: of the cases' ids; none: all of them.
        concurrency: cases at once.
    """
    arguments = ("-m", "tests.conformance.suite", address, str(concurrency), *patterns)
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(PATIENCE_S):
            printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"the suite ended with {process.returncode}"
    return [Outcome(**{**told, "details": tuple(told["details"])}) for told in json.loads(printed)]


async def run_section(port: int, section: str) -> list[Outcome]:
    """Run the cases of a section against a server on the loopback.

    Raises: AssertionError: the suite ran another number of cases than it has.
    """
    outcomes = await run_suite(f"127.0.0.1:{port}", f"{section}.*")
    assert len(outcomes) == SECTIONS[section][1], f"found {len(outcomes)} cases, expected {SECTIONS[section][1]}"
    return outcomes


def failures(outcomes: Sequence[Outcome]) -> str:
    """Tell of every case that did not pass; empty when all did."""
    return "\n".join("\n    ".join([f"{one.case}: {one.name}", *one.details]) for one in outcomes if not one.passed)


def summary(title: str, outcomes: Sequence[Outcome]) -> list[str]:
    """Lines with the number of each verdict, and the cases of every one that is not OK."""
    counts = Counter(one.name for one in outcomes)
    lines = [f"{title}: {len(outcomes)} cases: " + ", ".join(f"{count} {name}" for name, count in counts.most_common())]
    for name in counts:
        if name != "OK":
            lines.append(f"    {name}: " + ", ".join(one.case for one in outcomes if one.name == name))
    return lines
