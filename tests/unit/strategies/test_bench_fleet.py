"""The simulation of a fleet: it runs, it is reproducible, and it tells good from bad."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from benchmarks.bench_fleet import LIVE, STALE, SUBJECTS, Setting, main, simulate

BURST = Setting(live=600, burst=300, run_s=30.0, watched_s=10.0)


def test_the_quick_run_prints_every_subject(capsys: pytest.CaptureFixture[str]) -> None:
    """All three tables, with a figure for each strategy and control in each line, and the seed."""
    assert main(["--quick", "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    assert "seed 3" in printed
    assert all(len(re.findall(rf" {re.escape(subject)}(?: |$)", printed, re.MULTILINE)) == 3 for subject in SUBJECTS)
    lines = [line for line in printed.splitlines() if re.search(r"\d\.\d (\(|→)", line)]
    assert len(lines) == 3 + 3 + 7
    assert all(len(re.findall(r"-?\d+\.\d (?:\(|→)", line)) == len(SUBJECTS) for line in lines)
    assert "nan" not in printed


@pytest.mark.parametrize("through_one", [True, False])
def test_a_burst_herds_on_published_counts_and_not_on_live_ones(through_one: bool) -> None:
    """What is compared as it was published sends a whole burst to one place; the shared strategies do not."""
    setting = replace(BURST, burst_through_one=through_one)
    stale = simulate(STALE, setting).burst
    assert stale > 30
    assert simulate("shared-least-connections", setting).burst < 5
    assert simulate("shared-round-robin", setting).burst < stale / 2


def test_a_gap_is_not_filled_by_every_process() -> None:
    """Many arrivals between two beats: with the own part counted for all, the fleet is more even than without."""
    setting = Setting(live=3000, replicas=8, skewed=False, interval_s=4.0, run_s=80.0)
    assert simulate("shared-least-connections", setting).mean < simulate(LIVE, setting).mean


def test_a_frozen_picture_is_left_behind_by_the_rules() -> None:
    """Nothing heard for 60 s: with own counts the fleet stays level, with the last picture believed it drifts."""
    setting = Setting(live=600, lost_s=60.0, run_s=100.0, watched_s=20.0)
    assert simulate("shared-least-connections", setting).worst < 8
    assert simulate(STALE, replace(setting, trusted=True)).worst > 50


def test_the_same_seed_gives_the_same_figures() -> None:
    """And another one others: they are no constants."""
    setting = replace(BURST, burst_through_one=True)
    first = simulate("p2c", setting, seed=4)
    assert first == simulate("p2c", setting, seed=4)
    assert first != simulate("p2c", setting, seed=5)
