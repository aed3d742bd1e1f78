"""Accounting: what of a session is counted, timed and billed, from the messages that pass."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from router.accounting import (
    BINARY_TYPE,
    CLIENT_TYPES,
    COLLECTED,
    OTHER,
    RATE_LIMITS_UPDATED,
    TRANSCRIPTION_COMPLETED,
    UPSTREAM_TYPES,
    Accounting,
)
from router.events import Turn
from router.relay.frames import BINARY, TEXT
from router.usage import Usage
from tests.helpers.clock import ManualClock

USAGE: dict[str, Any] = {
    "total_tokens": 300,
    "input_tokens": 200,
    "output_tokens": 100,
    "input_token_details": {
        "text_tokens": 50,
        "audio_tokens": 120,
        "image_tokens": 30,
        "cached_tokens": 90,
        "cached_tokens_details": {"text_tokens": 20, "audio_tokens": 60, "image_tokens": 10},
    },
    "output_token_details": {"text_tokens": 25, "audio_tokens": 75},
}
BOOKED = Usage(
    total=300,
    input=200,
    output=100,
    input_text=50,
    input_audio=120,
    input_image=30,
    cached=90,
    cached_text=20,
    cached_audio=60,
    cached_image=10,
    output_text=25,
    output_audio=75,
)


class Books:
    """Accounting with everything that it tells."""

    def __init__(self, *, turns: bool = False) -> None:
        self.clock = ManualClock()
        self.turns: list[Turn] = []
        self.bills: list[Usage] = []
        self.first_audio: list[float] = []
        self.troubles: list[tuple[str, str]] = []
        self.limits: list[tuple[float, float]] = []
        self.ticks: list[float] = []
        self.it = Accounting(
            clock=self.clock,
            on_usage=self.bills.append,
            on_first_audio=self.first_audio.append,
            on_trouble=lambda code, kind: self.troubles.append((code, kind)),
            on_limits=lambda spent, seconds: self.limits.append((spent, seconds)),
            on_tick=self.ticks.append,
            on_turn=self.turns.append if turns else None,
        )

    def client(self, event_type: str | None, *, opcode: int = TEXT, size: int = 10) -> None:
        """A client's message."""
        self.it.message("client", opcode, event_type, size, None)

    def upstream(self, event: dict[str, Any] | str | bytes, *, opcode: int = TEXT) -> None:
        """An upstream's message: an event, its type alone, or bytes of a binary one."""
        if isinstance(event, bytes):
            self.it.message("upstream", BINARY, None, len(event), None)
            return
        body = {"type": event} if isinstance(event, str) else event
        payload = orjson.dumps(body)
        # As the relay does: a payload comes only for the types that were asked for.
        kept = payload if body["type"] in self.it.collect else None
        self.it.message("upstream", opcode, body["type"], len(payload), kept)


def done(response_id: str | None = "resp_1", usage: object = USAGE, **more: Any) -> dict[str, Any]:
    """A ``response.done``."""
    response = {"status": "completed", "usage": usage, **more}
    return {"type": "response.done", "response": response if response_id is None else {"id": response_id, **response}}


def transcribed(item: str, usage: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A completed transcription."""
    return {"type": TRANSCRIPTION_COMPLETED, "item_id": item, "content_index": 0, "transcript": "…", "usage": usage, **more}


# --- counts -------------------------------------------------------------------------------------


def test_messages_are_counted_by_side_and_known_type() -> None:
    """Numbers and bytes; what is not a known type of that side is ``other``, so that a peer cannot make up labels."""
    books = Books()
    books.client("input_audio_buffer.append", size=100)
    books.client("input_audio_buffer.append", size=50)
    books.client("response.done", size=7)
    books.client("made.up", size=1)
    books.client(None, size=2)
    books.client(None, opcode=BINARY, size=900)
    books.upstream("session.created")
    books.upstream("session.update")
    books.upstream(b"\0" * 33)
    assert books.it.take_counts() == {
        ("client", "input_audio_buffer.append"): (2, 150),
        ("client", OTHER): (3, 10),
        ("client", BINARY_TYPE): (1, 900),
        ("upstream", "session.created"): (1, len('{"type":"session.created"}')),
        ("upstream", OTHER): (1, len('{"type":"session.update"}')),
        ("upstream", BINARY_TYPE): (1, 33),
    }
    assert books.it.take_counts() == {}


@pytest.mark.parametrize("name", sorted(UPSTREAM_TYPES))
def test_every_known_type_of_the_upstream_has_its_own_count(name: str) -> None:
    """GA and beta names alike; none of them fails without a payload."""
    books = Books()
    books.it.message("upstream", TEXT, name, 5, None)
    assert books.it.take_counts() == {("upstream", name): (1, 5)}


def test_the_types_whose_payload_is_wanted_are_few_and_known() -> None:
    """Audio is counted, never parsed."""
    assert COLLECTED <= UPSTREAM_TYPES
    assert not any(name.endswith(".delta") or name.endswith("audio.done") for name in COLLECTED)
    assert not any("audio" in name for name in COLLECTED - {TRANSCRIPTION_COMPLETED})
    assert OTHER not in CLIENT_TYPES | UPSTREAM_TYPES


# --- usage --------------------------------------------------------------------------------------


def test_a_response_is_billed_by_kind() -> None:
    """Text, audio, image and their cached parts, in and out."""
    books = Books()
    books.upstream(done())
    assert books.bills == [BOOKED]
    assert books.it.usage == BOOKED


def test_a_response_is_billed_once_and_the_first_bill_counts() -> None:
    """A repeat, be it with other numbers, changes neither the sum nor the number of turns."""
    books = Books()
    books.upstream(done("a"))
    books.upstream(done("a"))
    books.upstream(done("b", {"total_tokens": 5, "input_tokens": 3, "output_tokens": 2}))
    books.upstream(done("a", {"total_tokens": 10**6}))
    assert books.it.usage == BOOKED + Usage(total=5, input=3, output=2)
    assert len(books.bills) == 2
    assert books.it.turns == 2


def test_a_bill_that_comes_with_a_repeat_still_counts() -> None:
    """The first ``response.done`` had no usage: nothing was billed yet."""
    books = Books()
    books.upstream(done("a", None))
    books.upstream(done("a"))
    assert (books.it.usage, books.it.turns) == (BOOKED, 1)


def test_responses_without_an_id_are_all_billed() -> None:
    """Nothing tells that they are the same one."""
    books = Books()
    books.upstream(done(None))
    books.upstream(done(None))
    assert (books.it.usage, books.it.turns) == (BOOKED + BOOKED, 2)


def test_usage_beside_the_response_is_xais() -> None:
    """PROTOCOL §4: it may stand there, or nowhere; where both are, the response's own counts."""
    books = Books()
    books.upstream({"type": "response.done", "response": {"id": "a"}, "usage": USAGE})
    books.upstream({"type": "response.done", "response": {"id": "b"}})
    books.upstream({**done("c"), "usage": {"total_tokens": 1}})
    assert books.it.usage == BOOKED + BOOKED


@pytest.mark.parametrize("status", ["completed", "cancelled", "failed", "incomplete"])
def test_every_status_is_billed_and_is_a_turn(status: str) -> None:
    """A cancelled answer cost something as well."""
    books = Books()
    books.upstream(done(status=status))
    assert (books.it.usage, books.it.turns) == (BOOKED, 1)


def test_a_transcription_is_billed_apart_and_once_for_each_part_of_an_item() -> None:
    """By tokens or by seconds; a response with the same id as an item is another bill."""
    books = Books()
    tokens = {"type": "tokens", "total_tokens": 12, "input_tokens": 10, "output_tokens": 2}
    tokens["input_token_details"] = {"text_tokens": 1, "audio_tokens": 9}
    books.upstream(transcribed("item_1", tokens))
    books.upstream(transcribed("item_1", tokens))
    books.upstream(transcribed("item_1", {"type": "duration", "seconds": 2.5}, content_index=1))
    books.upstream(done("item_1"))
    assert books.it.usage == BOOKED + Usage(
        total=12,
        transcription_input=10,
        transcription_input_text=1,
        transcription_input_audio=9,
        transcription_output=2,
        transcription_seconds=2.5,
    )
    assert len(books.bills) == 3
    assert books.it.turns == 1


HOSTILE: list[Any] = [None, True, "12", -1, -1e300, 1e300, [], {}, [1], {"a": 1}, 10**15, "NaN", 2**63 - 1]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_number_that_is_none_counts_as_nothing(value: object) -> None:
    """Wherever it stands, the sums stay sums of counts, and the other numbers are still booked."""

    def spoilt(item: dict[str, Any]) -> dict[str, Any]:
        return {key: spoilt(part) if isinstance(part, dict) else value for key, part in item.items()}

    books = Books()
    books.upstream(done("a", spoilt(USAGE)))
    books.upstream(done("b", {**USAGE, "input_token_details": value, "output_token_details": value}))
    books.upstream(transcribed("i", {"type": "duration", "seconds": value if value != 2**63 - 1 else -1}))
    books.upstream(transcribed("j", {"type": value, "total_tokens": value, "input_token_details": value}))
    assert books.it.usage == Usage(total=300, input=200, output=100)


@pytest.mark.parametrize(
    "payload", [None, b"", b"{", b"[]", b"null", b"\xff", b'"x"', b"[" * 5000, b'{"response":[]}', b'{"response":7}']
)
def test_a_payload_that_is_no_event_bills_nothing_and_raises_nothing(payload: bytes | None) -> None:
    """``None`` is a payload beyond the limit of what is kept."""
    books = Books()
    for name in ("response.done", "error", TRANSCRIPTION_COMPLETED):
        books.it.message("upstream", TEXT, name, 10, payload)
    assert books.it.usage == Usage()
    assert not books.bills
    assert not books.troubles


def test_remembered_ids_are_bounded() -> None:
    """A session cannot fill the memory with ids; the sums go on."""
    books = Books()
    for index in range(10_000):
        books.upstream(done(f"resp_{index}", {"total_tokens": 1}))
    assert books.it.usage.total == 10_000
    assert len(books.it._billed) == len(books.it._done_ids) <= 8192
    books.upstream(done("resp_9999", {"total_tokens": 1}))
    assert books.it.usage.total == 10_000


def test_nothing_is_done_with_a_client_that_claims_to_be_billed() -> None:
    """A client's ``response.done`` is no bill and no turn."""
    books = Books()
    books.it.message("client", TEXT, "response.done", 10, orjson.dumps(done()))
    books.it.message("client", TEXT, "error", 10, orjson.dumps({"type": "error", "error": {"code": "insufficient_quota"}}))
    assert (books.it.usage, books.it.turns, books.troubles) == (Usage(), 0, [])


# --- troubles -----------------------------------------------------------------------------------


def test_errors_and_failed_responses_are_told_with_code_and_type() -> None:
    """PROTOCOL §3: a failed turn is no ``error`` event; both may tell of a quota. What is no text is left out."""
    books = Books()
    books.upstream({"type": "error", "error": {"type": "invalid_request_error", "code": "rate_limit_exceeded", "message": "m"}})
    books.upstream({"type": "error", "error": {"type": "server_error", "code": None}})
    details = {"type": "failed", "error": {"type": "insufficient_quota", "code": "x" * 300}}
    books.upstream(done(status="failed", status_details=details))
    books.upstream({"type": "error"})
    books.upstream({"type": "error", "error": "text"})
    assert books.troubles == [("rate_limit_exceeded", "invalid_request_error"), ("", "server_error"), ("", "insufficient_quota")]


# --- time to first audio ------------------------------------------------------------------------


@pytest.mark.parametrize("delta", ["response.output_audio.delta", "response.audio.delta", b"\0\0"])
@pytest.mark.parametrize("by", ["commit", "speech_stopped"])
def test_first_audio_is_timed_from_the_end_of_speech(by: str, delta: str | bytes) -> None:
    """From the client's commit or the server's speech_stopped to the first audio: GA, beta and binary."""
    books = Books()
    for seconds in (0.7, 0.3):
        if by == "commit":
            books.client("input_audio_buffer.commit")
        else:
            books.upstream("input_audio_buffer.speech_started")
            books.upstream("input_audio_buffer.speech_stopped")
        books.upstream("response.created")
        books.clock.advance(seconds)
        books.upstream("response.output_audio_transcript.delta")
        books.upstream(delta)
        books.clock.advance(1)
        books.upstream(delta)
        books.upstream(done(None, None))
    assert books.first_audio == pytest.approx([0.7, 0.3])
    assert books.it.first_audio_s == pytest.approx(0.7)


def test_audio_that_answers_no_speech_is_not_timed() -> None:
    """A typed question has no end of speech; a client's own binary audio is no answer."""
    books = Books()
    books.client("response.create")
    books.upstream("response.created")
    books.upstream("response.output_audio.delta")
    books.client("input_audio_buffer.commit")
    books.client(None, opcode=BINARY)
    assert (books.first_audio, books.it.first_audio_s) == ([], None)


def test_a_user_who_speaks_on_starts_the_measurement_anew() -> None:
    """A pause in a sentence: what counts is the end of the last piece of speech."""
    books = Books()
    books.upstream("input_audio_buffer.speech_stopped")
    books.clock.advance(5)
    books.upstream("input_audio_buffer.speech_started")
    books.upstream("response.output_audio.delta")
    assert books.first_audio == []
    books.clock.advance(2)
    books.upstream("input_audio_buffer.speech_stopped")
    books.clock.advance(0.4)
    books.upstream("response.output_audio.delta")
    assert books.first_audio == pytest.approx([0.4])


def test_audio_of_the_answer_before_is_not_the_first_audio_of_the_next() -> None:
    """Deltas of an answer that is being interrupted still arrive after the commit; they made a deployment look instant."""
    books = Books()
    books.upstream("response.created")
    books.upstream("response.output_audio.delta")
    books.client("response.cancel")
    books.client("input_audio_buffer.commit")
    books.clock.advance(0.01)
    books.upstream("response.output_audio.delta")
    assert books.first_audio == []
    books.upstream(done("old", None, status="cancelled"))
    books.upstream("response.created")
    books.clock.advance(0.5)
    books.upstream("response.output_audio.delta")
    assert books.first_audio == pytest.approx([0.51])


# --- phase --------------------------------------------------------------------------------------


def test_a_turn_lasts_from_its_creation_to_its_end() -> None:
    """Several responses may be open; a repeated or unknown end closes none of the others."""
    books = Books()
    events: list[dict[str, Any] | str] = [
        done("unknown", None),
        "response.created",
        "response.created",
        done("a", None),
        done("a", None),
        done("b", None),
    ]
    phases: list[str] = [books.it.phase]
    for event in events:
        books.upstream(event)
        phases.append(books.it.phase)
    assert phases == ["idle", "idle", "turn", "turn", "turn", "turn", "idle"]


def test_ticks_are_handed_on() -> None:
    """Twice a second, with the clock's reading."""
    books = Books()
    books.it.tick(12.5)
    assert books.ticks == [12.5]


def test_usage_adds_up_and_shows_only_what_it_has() -> None:
    """Sums by field; zeros are left out of the log."""
    total = BOOKED + Usage(transcription_seconds=1.5)
    assert total.as_dict()["transcription_seconds"] == 1.5
    assert Usage().as_dict() == {}
    assert not Usage()
    assert total
    assert json.loads(json.dumps(total.as_dict())) == total.as_dict()


# --- the provider's limits -----------------------------------------------------------------------


def limits(*items: Any) -> dict[str, Any]:
    """A ``rate_limits.updated``."""
    return {"type": RATE_LIMITS_UPDATED, "event_id": "e", "rate_limits": list(items)}


def test_the_tightest_of_the_reported_limits_is_told() -> None:
    """The share that is used up of the one that is used up most, and when it is whole again."""
    books = Books()
    books.upstream(
        limits(
            {"name": "requests", "limit": 100, "remaining": 90, "reset_seconds": 5},
            {"name": "tokens", "limit": 50_000, "remaining": 10_000, "reset_seconds": 12.5},
        )
    )
    ((spent, seconds),) = books.limits
    assert spent == pytest.approx(0.8)
    assert seconds == 12.5


@pytest.mark.parametrize(
    "event",
    [
        {"type": RATE_LIMITS_UPDATED},
        limits(),
        limits(None, 7, "x", [], {}),
        limits({"limit": 0, "remaining": 0}),
        limits({"limit": -5, "remaining": 1}),
        limits({"limit": True, "remaining": 1}),
        limits({"limit": 10, "remaining": "many"}),
        limits({"limit": 10}),
        {"type": RATE_LIMITS_UPDATED, "rate_limits": {"limit": 10, "remaining": 1}},
    ],
)
def test_a_report_without_a_usable_limit_tells_nothing(event: dict[str, Any]) -> None:
    """Whatever stands there, nothing is raised and nothing is made up."""
    books = Books()
    books.upstream(event)
    assert books.limits == []


@pytest.mark.parametrize(("remaining", "spent"), [(-3, 1.0), (10**9, 0.0), (5, 0.5), (0, 1.0), (1e300, 0.0)])
def test_what_remains_is_kept_within_the_limit(remaining: float, spent: float) -> None:
    """More than everything is everything, less than nothing is nothing."""
    books = Books()
    books.upstream(limits({"limit": 10, "remaining": remaining, "reset_seconds": 1}))
    assert books.limits == [(spent, 1)]


# --- turns --------------------------------------------------------------------------------------


def test_turns_are_told_with_their_times_and_bills() -> None:
    """A turn lasts from the end of speech to the answer's end; where there was no speech, from the answer's begin."""
    books = Books(turns=True)
    books.upstream("input_audio_buffer.speech_stopped")
    books.clock.advance(0.5)
    books.upstream("response.created")
    books.clock.advance(0.25)
    books.upstream("response.output_audio.delta")
    books.clock.advance(2.0)
    books.upstream(done("a"))
    books.upstream("response.created")
    books.clock.advance(1.0)
    books.upstream(done("b", usage=None, status="cancelled"))
    assert books.turns == [
        Turn(seconds=2.75, first_audio_s=0.75, status="completed", response="a", usage=BOOKED),
        Turn(seconds=1.0, status="cancelled", response="b"),
    ]
    assert books.it.turns == 2


def test_a_failed_turn_tells_why() -> None:
    """The upstream's code, or else its type; a word that no status is counts as another one."""
    books = Books(turns=True)
    books.upstream(done("a", usage=None, status="failed", status_details={"error": {"code": "busy", "type": "server_error"}}))
    books.upstream(done("b", usage=None, status=["odd"], status_details={"error": {"type": "server_error"}}))
    assert [(turn.status, turn.error, turn.seconds) for turn in books.turns] == [
        ("failed", "busy", 0.0),
        (OTHER, "server_error", 0.0),
    ]


def test_a_turn_is_told_once() -> None:
    """An answer whose end comes twice has ended once, and what was billed before is not in the turn."""
    books = Books(turns=True)
    books.upstream("response.created")
    books.upstream(done("a"))
    books.upstream(done("a"))
    assert [turn.usage for turn in books.turns] == [BOOKED]


def test_the_end_of_the_session_ends_its_turns() -> None:
    """What was under way is told as unfinished, once."""
    books = Books(turns=True)
    books.upstream("response.created")
    books.clock.advance(3.0)
    books.it.end_turns()
    books.it.end_turns()
    assert books.turns == [Turn(seconds=3.0, status="unfinished")]


def test_answers_that_never_end_are_not_all_kept() -> None:
    """An upstream that begins answers and ends none costs no memory."""
    books = Books(turns=True)
    for _ in range(100_000):
        books.upstream("response.created")
    books.it.end_turns()
    assert 1 < len(books.turns) < 100


def test_nobody_to_tell_of_turns() -> None:
    """Without a listener nothing is kept, and the turns are counted all the same."""
    books = Books()
    books.upstream("response.created")
    books.upstream(done("a"))
    books.upstream("response.created")
    books.it.end_turns()
    assert books.it.turns == 1 and not books.it._open_turns
