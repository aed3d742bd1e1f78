"""What is remembered of sessions that have ended."""

from __future__ import annotations

from router.admin.views import Recent
from router.events import Notice
from tests.unit.test_metrics import record_of


def test_the_last_records_are_remembered() -> None:
    """By id, with the moment of the end; the oldest go; what is no record is nothing."""
    moments = iter((10.0, 20.0, 30.0))
    recent = Recent(wall_clock=lambda: next(moments), remembered=2)
    recent(Notice(level="info", event="nothing"))
    records = [record_of(session=f"rs_{number}") for number in range(3)]
    for record in records:
        recent(record)
    assert len(recent) == 2 and list(recent.ids) == ["rs_1", "rs_2"]
    assert recent.get("rs_2") == (30.0, records[2]) and recent.get("rs_0") is None
