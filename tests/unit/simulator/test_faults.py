"""Fault verbs: how they are written and whom they hit."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import router.simulator
from router.simulator import faults
from router.simulator.faults import VERBS, Fault, FaultError, FaultPlan, make_fault, parse_fault, read_faults


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("status=503,retry_after=7,next=3", faults.Status(status=503, retry_after=7, next=3)),
        (" status = 503 , probability = 0.5 ", faults.Status(status=503, probability=0.5)),
        ("status=302,location=http://h/x?a=b", faults.Status(status=302, location="http://h/x?a=b")),
        ("status=429,retry_after=Wed, 21 Oct", None),
        ("refuse", faults.Refuse()),
        ("refuse=2.5", faults.Refuse(for_s=2.5)),
        ("refuse,reset=true,every=2", faults.Refuse(reset=True, every=2)),
        ("hang_before_101", faults.HangBefore101()),
        ("hang_after_101,next=1", faults.HangAfter101(next=1)),
        ("slow_first_event=2", faults.SlowFirstEvent(seconds=2)),
        ("error_event=insufficient_quota,close=none", faults.ErrorEvent(code="insufficient_quota", close=None)),
        ("error_event,reason=", faults.ErrorEvent(reason="")),
        ("close_after_events=3,code=4000", faults.CloseAfterEvents(events=3, code=4000)),
        ("reset_after_events=0", faults.ResetAfterEvents(events=0)),
        ("garbage", faults.Garbage()),
        ("garbage=json,after_events=2", faults.Garbage(kind="json", after_events=2)),
        ("stall", faults.Stall()),
        ("drop_mid_turn=0", faults.DropMidTurn(after_deltas=0)),
        ("fail_turn=server_error", faults.FailTurn(code="server_error")),
    ],
)
def test_written_faults(text: str, fault: Fault | None) -> None:
    """The command line's form reads as the dataclass, or is refused."""
    if fault is None:
        with pytest.raises(FaultError):
            parse_fault(text)
    else:
        assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "verb: found ''"),
        ("nope=1", "verb: found 'nope', expected one of"),
        ("status", "status: found nothing, expected a value"),
        ("status=abc", "status: found 'abc', expected an integer"),
        ("status=101", "found 101, expected at least 200"),
        ("status=600", "found 600, expected at most 599"),
        ("status=503,surprise=1", "found option 'surprise', expected one of"),
        ("status=503,next", "found 'next', expected option=value"),
        ("status=503,status=504", "found 'status' twice"),
        ("status=503,next=0", "next: found 0, expected at least 1"),
        ("status=503,probability=1.5", "probability: found 1.5, expected at most 1"),
        ("status=503,probability=nan", "probability: found nan"),
        ("status=503,code=a\nb", "no control characters"),
        ("hang_after_101=3", "found the value '3', expected none"),
        ("refuse,next=2", "expected none unless reset=true"),
        ("refuse=3,reset=true", "expected one of the two"),
        ("close_after_events=1,code=1006", "expected a close code"),
        ("close_after_events=1,code=999", "expected a close code"),
        ("close_after_events=1,code=2000", "expected a close code"),
        ("garbage=noise", "expected one of frame, json, http"),
        ("garbage,hex=abc", "expected pairs of hex digits"),
        ("stall=-1", "expected at least 0"),
        ("refuse,reset=7", "expected true or false"),
    ],
)
def test_wrong_faults_say_where_what_and_what_instead(text: str, words: str) -> None:
    """An error names the verb and the option, what was found and what was expected."""
    with pytest.raises(FaultError, match=f"^fault.*{words}"):
        parse_fault(text)


@pytest.mark.parametrize(
    "document",
    [5, None, "status", [[]], {}, {"verb": 5}, {"verb": "status", "status": True}, {"verb": "status", "status": "503"}],
)
def test_json_is_read_strictly(document: Any) -> None:
    """JSON has types, so a text is no number there."""
    with pytest.raises(FaultError):
        read_faults(document)


def test_json_reads_one_or_many() -> None:
    """An object or a list of objects."""
    one = {"verb": "status", "status": 503}
    assert read_faults(one) == [faults.Status(status=503)]
    assert read_faults([one, {"verb": "stall"}]) == [faults.Status(status=503), faults.Stall()]


@given(
    st.sampled_from(sorted(VERBS)),
    st.dictionaries(st.sampled_from(["next", "events", "code", "status", "x"]), st.text() | st.integers() | st.none()),
)
def test_options_make_a_fault_or_a_fault_error(verb: str, options: dict[str, object]) -> None:
    """Nothing else comes out of any options, and what was accepted describes itself so that it reads the same."""
    try:
        fault = make_fault(verb, options)
    except FaultError:
        return
    assert read_faults(fault.describe()) == [fault]


@given(st.text())
def test_any_text_is_a_fault_or_a_fault_error(text: str) -> None:
    """The command line's form never gives a traceback."""
    try:
        parse_fault(text)
    except FaultError as error:
        assert str(error).startswith("fault")


def test_the_table_of_verbs_is_complete() -> None:
    """The package's docstring has a row for each verb, naming each of its options."""
    rows = {line.split("``")[1]: line for line in (router.simulator.__doc__ or "").splitlines() if line.startswith("| ``")}
    assert set(rows) == set(VERBS)
    shared = {"next", "every", "probability"}
    for verb, kind in VERBS.items():
        text = rows[verb] if verb != "status" else rows[verb] + "``type`` ``message``"
        assert [option.name for option in fields(kind) if option.name not in shared and f"``{option.name}``" not in text] == []
        assert not kind.main or f"``{kind.main}``*" in text


# --- choosing ---


def plan(*written: str, seed: int = 1) -> FaultPlan:
    """A plan of written faults."""
    return FaultPlan(map(parse_fault, written), rng=random.Random(seed))


def hits(made: FaultPlan, count: int) -> list[str]:
    """The verbs that hit the next sessions, - for none."""
    return [fault.verb if fault else "-" for fault in (made.draw_session() for _ in range(count))]


def test_next_every_and_their_combination() -> None:
    """Every second session, and only two of them."""
    assert hits(plan("stall,next=2"), 4) == ["stall", "stall", "-", "-"]
    assert hits(plan("stall,every=3"), 6) == ["-", "-", "stall"] * 2
    assert hits(plan("stall,every=2,next=2"), 6) == ["-", "stall", "-", "stall", "-", "-"]


def test_probability_is_seeded_and_about_right() -> None:
    """The same seed hits the same sessions; a quarter is about a quarter."""
    first, again, other = (hits(plan("stall,probability=0.25", seed=seed), 2_000) for seed in (7, 7, 8))
    assert first == again != other
    assert 400 < first.count("stall") < 600


def test_the_first_that_is_due_hits_and_the_others_do_not_count() -> None:
    """One fault a session, in order of setting."""
    assert hits(plan("stall,next=1", "status=503,next=2"), 4) == ["stall", "status", "status", "-"]


def test_resets_are_drawn_for_connections_only() -> None:
    """``refuse`` hits connections, everything else sessions."""
    made = plan("refuse,reset=true,next=1", "stall,next=1")
    assert hits(made, 2) == ["stall", "-"]
    assert [made.draw_connection() for _ in range(2)] == [True, False]
    assert made.listener_closed is None
    assert plan("refuse").listener_closed == faults.Refuse()


def test_replacing_adding_removing_and_clearing() -> None:
    """A fault takes the place of those of its verb; the others stay."""
    made = plan("stall=1", "stall=2", "status=503")
    made.replace(faults.Stall(after_deltas=3))
    assert made.faults == (faults.Status(status=503), faults.Stall(after_deltas=3))
    made.remove("status")
    assert made.describe() == [{"verb": "stall", "after_deltas": 3, "hits": 0}]
    made.clear()
    assert not made.faults
