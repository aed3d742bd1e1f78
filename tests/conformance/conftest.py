"""What was run, told at the end: the Autobahn cases' verdicts, those that are fine without being OK by name; the seeds."""

from __future__ import annotations

import pytest

from tests.conformance.autobahn import Outcome, summary

# By what the suite spoke to.
OUTCOMES = pytest.StashKey[dict[str, list[Outcome]]]()
SEQUENCES = pytest.StashKey[list[str]]()


@pytest.fixture
def told(pytestconfig: pytest.Config) -> dict[str, list[Outcome]]:
    """Where a test puts its outcomes, by a title."""
    return pytestconfig.stash.setdefault(OUTCOMES, {})


@pytest.fixture
def sequences_told(pytestconfig: pytest.Config) -> list[str]:
    """Where a test puts a line on the sequences that it ran."""
    return pytestconfig.stash.setdefault(SEQUENCES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print them."""
    outcomes = config.stash.get(OUTCOMES, {})
    if outcomes:
        terminalreporter.section("Autobahn")
    for title in sorted(outcomes):
        for line in summary(title, outcomes[title]):
            terminalreporter.write_line(line)
    if lines := config.stash.get(SEQUENCES, []):
        terminalreporter.section("random sequences")
    for line in lines:
        terminalreporter.write_line(line)
