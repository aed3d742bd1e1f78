"""The configuration is edited while two hundred people talk, in frames of 100 ms."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from tests.helpers.edits import edit

pytestmark = pytest.mark.soak


@pytest.mark.parametrize("workers", [1, 2])
async def test_fifty_edits_under_two_hundred_calls(tmp_path: Path, workers: int) -> None:
    """No call ends or has a gap beyond that of calls without the router; new sessions follow within a second."""
    outcome = await edit(tmp_path, sessions=200, edits=50, general={"workers": workers})
    print(outcome.summary)
    assert outcome.harmed == []
    assert (outcome.valid, outcome.broken) == (40, 10)
    assert outcome.metrics["config_generation{}"] == 41
    assert outcome.gap_s < outcome.control_gap_s + 0.15, outcome.summary
    assert statistics.median(outcome.followed_s) < 1.0, outcome.summary
