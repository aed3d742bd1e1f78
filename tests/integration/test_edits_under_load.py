"""The configuration is edited while people talk: nobody hears of it."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from tests.helpers.edits import edit

# Machines are noisy: what a reload does to calls, it does each time; what other programs do, not.
_ROUNDS = 3


@pytest.mark.parametrize("workers", [1, 2])
async def test_fifty_edits_under_fifty_calls(tmp_path: Path, workers: int) -> None:
    """No call ends or has a gap beyond that of calls without the router; new sessions follow; the metrics tell."""
    outcomes = []
    for number in range(_ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        outcome = await edit(folder, sessions=50, edits=50, seed=number, general={"workers": workers})
        outcomes.append(outcome)
        print(outcome.summary)
        assert outcome.harmed == []
        assert (outcome.valid, outcome.broken) == (40, 10)
        assert outcome.metrics["config_generation{}"] == 41
        assert outcome.metrics["config_reloads_total{result=failure,trigger=file}"] == 10
        assert outcome.metrics["config_reloads_total{result=success,trigger=file}"] == 40
        assert outcome.metrics["config_last_reload_successful{}"] == 0, "the fiftieth edit was a broken one"
        if outcome.gap_s < outcome.control_gap_s + 0.15 and statistics.median(outcome.followed_s) < 1.0:
            return
    raise AssertionError([outcome.summary for outcome in outcomes])
