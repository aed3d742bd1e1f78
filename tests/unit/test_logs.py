"""The structured log: what is written at which level, and that no line can break, leak, or raise."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import logging
import math
import re
import sys
import threading
import typing
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from router import events, logs
from router.config.settings import Secret
from router.usage import Usage
from tests.helpers.clock import ManualClock

KEY = "sk-" + "test-0123456789abcdef"
# Everything that some reader of lines takes for the end of one.
LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"

Lines = Callable[[], list[dict[str, Any]]]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """It does."""
        return True


@pytest.fixture
def stream() -> io.StringIO:
    """Where the log of the test goes."""
    return io.StringIO()


@pytest.fixture
def clock() -> ManualClock:
    """Time for floods and repetitions."""
    return ManualClock()


@pytest.fixture
def log(stream: io.StringIO, clock: ManualClock) -> Iterator[logs.Log]:
    """A JSON log of everything, taken down afterwards."""
    with logs.configure("json", "debug", stream, clock=clock) as log:
        yield log


@pytest.fixture
def lines(log: logs.Log, stream: io.StringIO) -> Lines:
    """Returns what was logged since the last call, line by line."""

    def read() -> list[dict[str, Any]]:
        text = stream.getvalue()
        stream.seek(0)
        stream.truncate()
        assert text == "" or text.endswith("\n")
        return [json.loads(line) for line in text.splitlines()]

    return read


@pytest.fixture
def observer(log: logs.Log, clock: ManualClock) -> logs.LogObserver:
    """An observer on the log of the test."""
    return logs.LogObserver(clock=clock, refusals_per_s=3)


@pytest.fixture(autouse=True)
def no_secrets_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    redactor = type(logs._redactor)()
    monkeypatch.setattr(logs._redactor, "_spellings", redactor._spellings)
    monkeypatch.setattr(logs._redactor, "_registered", None)
    monkeypatch.setattr(logs._redactor, "_words", {})


STARTED = events.SessionStarted(session="s", group="voice", principal="master", client="192.0.2.7")
REFUSED = events.SessionRefused(session="s", status=401, code="invalid_api_key", detail="not valid", client="192.0.2.7")


def attempt_of(outcome: str = "ready", *, detail: str = "", raced: bool = False) -> events.Attempt:
    """An attempt of the session ``s``."""
    return events.Attempt(
        session="s", group="voice", deployment="d1", outcome=outcome, seconds=0.25, detail=detail, raced=raced
    )


def record_of(**changes: Any) -> events.SessionRecord:
    """A session with a failed and a ready attempt that a client ended."""
    facts: dict[str, Any] = {
        "session": "s",
        "group": "voice",
        "principal": "master",
        "client": "192.0.2.7",
        "deployment": "d2",
        "attempts": (attempt_of("timeout", detail="no answer within 2 s"), attempt_of()),
        "passed_over": (),
        "who": "client",
        "cause": "close",
        "phase": "idle",
        "status": 101,
        "client_code": 1000,
        "upstream_code": 1000,
        "upstream_reason": "bye",
        "seconds": 61.23456,
        "ready_s": 0.25,
        "client_bytes": 10,
        "upstream_bytes": 20,
        "client_events": 1,
        "upstream_events": 2,
        "turns": 1,
        "first_audio_s": None,
        "usage": Usage(total=30, output=10),
        "generation": 1,
    }
    return events.SessionRecord(**{**facts, **changes})


def notice_of(**facts: Any) -> events.Notice:
    """A notice with these facts."""
    return events.Notice(level="info", event="noticed", facts=facts)


# --- what is logged ------------------------------------------------------------------------------


def test_a_session_end_tells_everything(observer: logs.LogObserver, lines: Lines) -> None:
    """One line at info holds every field of the record; attempts are deployment, outcome and milliseconds."""
    observer(record_of())
    (line,) = lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.pop("timestamp"))
    assert line == {
        "level": "info",
        "event": "session ended",
        "session": "s",
        "group": "voice",
        "principal": "master",
        "client": "192.0.2.7",
        "deployment": "d2",
        "who": "client",
        "cause": "close",
        "phase": "idle",
        "status": 101,
        "client_code": 1000,
        "upstream_code": 1000,
        "upstream_reason": "bye",
        "seconds": 61.235,
        "ready_s": 0.25,
        "first_audio_s": None,
        "client_bytes": 10,
        "upstream_bytes": 20,
        "client_events": 1,
        "upstream_events": 2,
        "turns": 1,
        "usage": {"total": 30, "output": 10},
        "attempts": [
            {"deployment": "d1", "outcome": "timeout", "ms": 250.0},
            {"deployment": "d1", "outcome": "ready", "ms": 250.0},
        ],
        "passed_over": {},
        "generation": 1,
    }


def test_every_field_of_the_record_is_in_the_line(observer: logs.LogObserver, lines: Lines) -> None:
    """A field that is added to the record has to be logged as well."""
    observer(record_of())
    (line,) = lines()
    assert set(events.SessionRecord.__dataclass_fields__) <= set(line)


def test_a_ready_first_attempt_is_only_for_debugging(observer: logs.LogObserver, lines: Lines) -> None:
    """What goes well at once is told by the session's end; what needed a second attempt is worth a line."""
    observer(STARTED)
    observer(attempt_of())
    assert [(line["level"], line["event"]) for line in lines()] == [("debug", "session started"), ("debug", "attempt ready")]
    observer(record_of())
    observer(STARTED)
    observer(attempt_of("refused", detail="upgrade answered with HTTP 503"))
    observer(attempt_of())
    assert [(line["level"], line["event"], line.get("detail")) for line in lines()[2:]] == [
        ("warning", "attempt failed", "upgrade answered with HTTP 503"),
        ("info", "attempt ready", None),
    ]


def test_attempts_are_counted_for_each_session(observer: logs.LogObserver, lines: Lines) -> None:
    """One session's failure does not make another's first attempt a second one, and nothing is kept of what has ended."""
    for name in ("a", "b"):
        observer(events.SessionStarted(session=name, group="voice", principal="p", client="c"))
    observer(events.Attempt(session="a", group="voice", deployment="d", outcome="timeout", seconds=1.0))
    lines()
    for name in ("a", "b"):
        observer(events.Attempt(session=name, group="voice", deployment="d", outcome="ready", seconds=1.0))
    assert [line["level"] for line in lines()] == ["info", "debug"]
    for name in ("a", "b"):
        observer(record_of(session=name))
    # A loser of a race that ends after its session.
    observer(events.Attempt(session="a", group="voice", deployment="d", outcome="ready", seconds=1.0, raced=True))
    assert lines()[-1]["level"] == "info"
    assert observer._attempts == {}


@pytest.mark.parametrize(
    ("event", "level", "name"),
    [
        (REFUSED, "info", "request refused"),
        (attempt_of("client_gone"), "info", "attempt ended"),
        (attempt_of("client_request"), "info", "attempt ended"),
        (attempt_of("timeout"), "warning", "attempt failed"),
        (attempt_of("ready", raced=True), "info", "attempt ready"),
        (
            events.SessionReady(session="s", group="g", deployment="d", seconds=0.1, attempts=1, fallback=False),
            "debug",
            "session ready",
        ),
        (events.Ejected(deployment="d", group="g", reason="timeout", seconds=30.0, in_a_row=1), "warning", "deployment ejected"),
        (events.Admitted(deployment="d", group="g"), "info", "deployment admitted"),
        (events.CooledDown(deployment="d", group="g", seconds=5.0), "info", "deployment cools down"),
        (events.ConfigAlarm(deployment="d", group="g", detail="refused"), "error", "deployment needs an operator"),
        (events.Probed(deployment="d", group="g", outcome="ready", seconds=0.1), "debug", "probe ended"),
        (events.Probed(deployment="d", group="g", outcome="timeout", seconds=3.0), "warning", "probe ended"),
        (events.Notice(level="error", event="task failed", facts={"task": "t"}), "error", "task failed"),
        (events.Notice(level="shout", event="odd level"), "info", "odd level"),
    ],
)
def test_levels(observer: logs.LogObserver, lines: Lines, event: events.Event, level: str, name: str) -> None:
    """Each event has its level and its name."""
    observer(event)
    (line,) = lines()
    assert (line["level"], line["event"]) == (level, name)


def test_what_passes_within_a_session_is_not_logged(observer: logs.LogObserver, lines: Lines) -> None:
    """Traffic, usage and first audio come many times a session; their sums are in the line of its end."""
    observer(events.Traffic(deployment="d", counts={("client", "x"): (1, 1)}))
    observer(events.UsageRecorded(deployment="d", group="g", usage=Usage(total=1)))
    observer(events.FirstAudio(deployment="d", group="g", seconds=0.5))
    observer(typing.cast(events.Event, object()))
    assert lines() == []


def test_the_level_hides_what_is_below_it(stream: io.StringIO) -> None:
    """At ``warning`` a failed attempt is shown and a session's end is not."""
    with logs.configure("json", "warning", stream):
        observer = logs.LogObserver()
        for event in (STARTED, attempt_of("timeout"), record_of()):
            observer(event)
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["attempt failed"]


def test_a_flood_of_refusals_is_summed_up(observer: logs.LogObserver, lines: Lines, clock: ManualClock) -> None:
    """So many lines a second, then one that counts the rest by code, with whatever event comes next."""
    for _ in range(100):
        observer(REFUSED)
    observer(events.SessionRefused(session="s", status=404, code="model_not_found", detail="", client=""))
    assert len(lines()) == 3
    clock.advance(1.0)
    observer(events.FirstAudio(deployment="d", group="g", seconds=0.5))
    (line,) = lines()
    assert (line["level"], line["event"], line["count"]) == ("info", "requests refused", 98)
    assert line["kinds"] == {"invalid_api_key": 97, "model_not_found": 1}
    # The next second has room again, and nothing is told twice.
    observer(REFUSED)
    assert [line["event"] for line in lines()] == ["request refused"]


def test_what_a_flood_held_back_is_told_at_the_end(observer: logs.LogObserver, lines: Lines) -> None:
    """``flush`` does not wait for the second to be over."""
    for _ in range(5):
        observer(REFUSED)
    lines()
    observer.flush()
    observer.flush()
    assert [line["count"] for line in lines()] == [2]


def test_an_alarm_is_repeated_once_a_minute(observer: logs.LogObserver, lines: Lines, clock: ManualClock) -> None:
    """Each deployment's alarm comes at once, then at most once a minute with the number of those in between."""
    first = events.ConfigAlarm(deployment="d1", group="g", detail="key refused")
    other = events.ConfigAlarm(deployment="d2", group="g", detail="quota")
    for event in (first, first, other, first):
        observer(event)
    assert [(line["deployment"], line.get("held_back")) for line in lines()] == [("d1", None), ("d2", None)]
    clock.advance(59.9)
    observer(first)
    assert lines() == []
    clock.advance(0.1)
    observer(first)
    assert [(line["deployment"], line["held_back"]) for line in lines()] == [("d1", 3)]


def test_cool_downs_of_one_moment_are_one_line(observer: logs.LogObserver, lines: Lines, clock: ManualClock) -> None:
    """Fifty sessions that are told to wait at once are one cool-down."""
    for _ in range(50):
        observer(events.CooledDown(deployment="d1", group="g", seconds=5.0))
    assert len(lines()) == 1
    clock.advance(1.0)
    observer(events.CooledDown(deployment="d1", group="g", seconds=5.0))
    assert [line["held_back"] for line in lines()] == [49]


def test_a_notice_may_have_any_facts(observer: logs.LogObserver, lines: Lines) -> None:
    """Facts that are named like what every line has, or like parameters, neither replace it nor raise."""
    names = ("event", "level", "timestamp", "self", "exc_info", "logger", "method_name", "format")
    observer(notice_of(**dict.fromkeys(names, "mine")))
    (line,) = lines()
    assert (line["level"], line["event"]) == ("info", "noticed")
    assert [key for key, value in line.items() if value == "mine"] == [
        "event_",
        "level_",
        "timestamp_",
        "self_",
        "exc_info_",
        "logger",
        "method_name_",
        "format",
    ]


# --- secrets -------------------------------------------------------------------------------------


def test_no_secret_is_left_in_any_line(observer: logs.LogObserver, log: logs.Log, stream: io.StringIO) -> None:
    """A registered secret disappears from facts, keys, names, nested values, exceptions, libraries' lines and warnings."""
    secret = 'my "very"\nsecret/värde'
    logs.register_secrets([Secret(secret)])
    observer(attempt_of("refused", detail=f"said {secret}"))
    observer(record_of(upstream_reason=f"bye {secret}", principal=secret, group=f"g-{secret}"))
    observer(notice_of(nested={"list": [secret, {"deep": secret}], secret: 1}, raw=secret.encode(), said=repr(secret)))
    try:
        try:
            raise ValueError(f"inner {secret}")
        except ValueError as inner:
            raise RuntimeError(f"outer {secret}") from inner
    except RuntimeError as error:
        observer(notice_of(error=error))
        logging.getLogger("aiohttp").exception("failed with %s", secret)
    logging.getLogger("aiohttp").error(json.dumps({"key": secret}))
    text = stream.getvalue()
    assert text.count("***") >= 12
    assert "very" not in text
    assert "rde" not in text


def test_what_looks_like_a_key_is_hidden_without_being_registered(observer: logs.LogObserver, stream: io.StringIO) -> None:
    """Patterns are the net for keys that nobody knew of; names of the configuration may look like one."""
    observer(attempt_of("refused", detail=f"upstream said: bad key {KEY}, Authorization: Bearer abc"))
    observer(notice_of(api_key="whatever", url="http://user:pass@host/"))
    observer(events.Admitted(deployment="xai-voice-agent-1", group="xai-voice-agent"))
    text = stream.getvalue()
    assert KEY not in text
    assert "abc" not in text
    assert "whatever" not in text
    assert "pass@" not in text
    assert '"deployment":"xai-voice-agent-1","group":"xai-voice-agent"' in text


@pytest.mark.parametrize("place", [0, 990, 1990, 16 * 1024 - 5, 16 * 1024 - 20, 16 * 1024])
def test_a_text_that_is_cut_leaves_no_part_of_a_secret(observer: logs.LogObserver, stream: io.StringIO, place: int) -> None:
    """Secrets are taken out before a text is cut, and where it is too long for that, no half of one is shown."""
    # No digits: a timestamp may hold any four of them in a row.
    secret = "abcdefghijklmnopqrstuvwxyzZYXWVUTSRQ"
    # Another secret, so long that what is left of many of them is shorter than the bound of what is shown.
    logs.register_secrets([secret, "-" * 64])
    for filler in ("x", "-" * 64):
        padding = (filler * (place + 1))[:place]
        observer(notice_of(text=f"{padding}{secret} and more" + "y" * 20_000))
    text = stream.getvalue()
    for size in range(len(secret) - 3):
        assert secret[size : size + 4] not in text


# --- lines ---------------------------------------------------------------------------------------

FACTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=8)
    | st.text(alphabet=st.characters(), max_size=8)
    | st.text(alphabet=LINE_ENDS + "\x1b\x9b\u202e\ufeff\ud800 =\"'\\a", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def written(format: typing.Literal["json", "console"], event: events.Event) -> str:
    """What one event writes."""
    stream = io.StringIO()
    with logs.configure(format, "debug", stream):
        logs.LogObserver()(event)
    return stream.getvalue()


@given(name=st.text(max_size=8), facts=st.dictionaries(st.text(alphabet=st.characters(), max_size=6), FACTS, max_size=5))
def test_any_facts_are_one_line(name: str, facts: dict[str, Any]) -> None:
    """Whatever stands in a notice is one line of either format, readable as JSON, without anything that steers a terminal."""
    event = events.Notice(level="info", event=name, facts=facts)
    as_json, as_text = written("json", event), written("console", event)
    for text in (as_json, as_text):
        assert len(text.splitlines()) == 1
        assert text.endswith("\n")
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]", text)
        assert text.encode()
    assert json.loads(as_json)["level"] == "info"
    assert "lost" not in json.loads(as_json) or "lost" in facts


def test_json_gives_back_what_was_said(observer: logs.LogObserver, lines: Lines) -> None:
    """Escaping is JSON's own: a reader gets every character that was there, except for those that are no text."""
    text = f"a{LINE_ENDS}b\x1b[31m\u202e\"\\c"
    observer(notice_of(text=text, raw=b"\xff\n", half="\ud800", number=2**70, nan=math.nan, small=-(2**63)))
    (line,) = lines()
    assert line["text"] == text
    assert (line["raw"], line["half"]) == ("\\xff\n", "\\ud800")
    assert line["number"] == "an integer of 71 bits"
    assert (line["nan"], line["small"]) == ("nan", -(2**63))


def test_texts_lists_depth_and_lines_are_bounded(observer: logs.LogObserver, lines: Lines) -> None:
    """Megabytes from outside become a line of some kilobytes that says how much there was."""
    deep: Any = "end"
    for _ in range(100):
        deep = [deep]
    observer(notice_of(text="x" * 1_000_000, items=list(range(1000)), deep=deep, more={str(n): n for n in range(1000)}))
    (line,) = lines()
    assert line["text"] == "x" * 1000 + "… (1000000 characters)"
    assert len(line["items"]) == 51
    assert line["items"][-1] == "… (1000 items)"
    assert "end" not in json.dumps(line["deep"])
    assert len(line["more"]) == 51
    observer(notice_of(**{f"f{n}": ["y" * 900] * 50 for n in range(40)}))
    (line,) = lines()
    assert line["event"] == "noticed"
    assert re.fullmatch(r"\d{7} characters of facts", line["left_out"])


def test_an_object_that_cannot_be_shown_is_named(observer: logs.LogObserver, lines: Lines) -> None:
    """Somebody else's ``__str__`` or mapping may raise; the line says what it was and the caller hears nothing."""

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

    class BrokenMapping(dict[str, int]):
        def items(self) -> Any:
            raise RuntimeError("no")

    observer(notice_of(value=Broken()))
    observer(notice_of(value=BrokenMapping(a=1)))
    first, second = lines()
    assert first["value"] == "<Broken that cannot be shown: RuntimeError>"
    assert (second["event"], second["lost"], second["error"]) == ("log line lost", "noticed", "RuntimeError")


def test_an_exception_is_one_field(observer: logs.LogObserver, lines: Lines) -> None:
    """Type, message, where and causes; of a path only the end, of a frame no values of variables."""
    hidden = "a value of a local variable"
    try:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError(f"outer\nof {len(hidden)}") from error
    except ValueError as error:
        observer(notice_of(error=error))
    (line,) = lines()
    shown = line["error"]
    assert (shown["type"], shown["message"]) == ("ValueError", "outer\nof 27")
    assert re.fullmatch(r"unit/test_logs\.py:\d+ test_an_exception_is_one_field", shown["at"][-1])
    assert (shown["cause"]["type"], shown["cause"]["message"]) == ("KeyError", "'inner'")
    assert hidden not in json.dumps(line)


def test_endless_causes_end(observer: logs.LogObserver, lines: Lines) -> None:
    """A chain of causes, a circle of them, and a group of exceptions are cut after a few."""
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    group = ExceptionGroup("many", [ValueError(str(number)) for number in range(100)])
    observer(notice_of(error=first))
    observer(notice_of(error=group))
    circle, many = lines()
    assert json.dumps(circle).count('"type"') == logs.MAX_CAUSES + 1
    assert len(many["error"]["exceptions"]) == logs.MAX_CAUSES


# --- console -------------------------------------------------------------------------------------


def test_a_console_line(stream: io.StringIO) -> None:
    """Time, level, event, then facts; empty ones are left out and odd ones are quoted."""
    with logs.configure("console", "info", stream):
        facts = {"a": 1, "b": "x y", "c": None, "d": ["z"], "e": ""}
        logs.LogObserver()(events.Notice(level="warning", event="a thing", facts=facts))
    line = stream.getvalue()
    assert re.fullmatch(r'\S+Z warning a thing +a=1 b="x y" d=\["z"\]\n', line)


def test_a_value_cannot_pretend_to_be_another_fact(stream: io.StringIO) -> None:
    """What looks like more facts, or like another line, stays within its quotes."""
    with logs.configure("console", "info", stream):
        logs.LogObserver()(notice_of(reason="bye who=router\n2026-01-01T00:00:00Z info all is well"))
    assert 'reason="bye who=router\\n2026-01-01T00:00:00Z info all is well"\n' in stream.getvalue()


@pytest.mark.parametrize(
    ("terminal", "format", "environ", "json_lines", "coloured"),
    [
        (True, "auto", {}, False, True),
        (False, "auto", {}, True, False),
        (False, "console", {}, False, False),
        (True, "console", {"NO_COLOR": "1"}, False, False),
        (True, "auto", {"TERM": "dumb"}, False, False),
        (True, "json", {}, True, False),
    ],
)
def test_the_format_follows_the_stream(
    terminal: bool, format: logs.LogFormat, environ: dict[str, str], json_lines: bool, coloured: bool
) -> None:
    """``auto`` is for people on a terminal and JSON elsewhere; colours are for terminals that want them."""
    stream = Terminal() if terminal else io.StringIO()
    with logs.configure(format, "info", stream, environ=environ):
        logs.LogObserver()(notice_of(a=1))
    assert stream.getvalue().startswith("{") is json_lines
    assert ("\x1b[" in stream.getvalue()) is coloured


# --- streams that fail ---------------------------------------------------------------------------


class BrokenPipe(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, text: str) -> int:
        """Fail as the system does."""
        raise BrokenPipeError(32, "Broken pipe")


class FullDisk(io.StringIO):
    """A file on a full disk: the text is taken and cannot be kept."""

    def flush(self) -> None:
        """Fail as the system does."""
        raise OSError(28, "No space left on device")


def closed() -> io.StringIO:
    """A stream that was closed."""
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("make", [closed, BrokenPipe, FullDisk])
def test_writing_never_raises(make: Callable[[], io.StringIO]) -> None:
    """A log that cannot be written ends no session; lines that are lost are counted."""
    with logs.configure("auto", "debug", make()) as log:
        logs.LogObserver()(record_of())
        logging.getLogger("aiohttp").error("x")
        assert log.lost == 2


def test_a_process_without_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon may have none at all."""
    monkeypatch.setattr(sys, "stderr", None)
    with logs.configure() as log:
        logs.LogObserver()(record_of())
        assert log.lost == 1


def test_a_stream_that_knows_few_characters() -> None:
    """What a terminal of another age cannot show is written as an escape, not lost."""
    raw = io.BytesIO()
    with logs.configure("json", "info", io.TextIOWrapper(raw, encoding="ascii")) as log:
        logs.LogObserver()(notice_of(text="snow ☃"))
        assert log.lost == 0
        assert json.loads(raw.getvalue())["text"] == "snow ☃"


# --- the rest of the process ---------------------------------------------------------------------


def test_libraries_come_in_the_same_form(log: logs.Log, lines: Lines) -> None:
    """Warnings and errors of the standard library's loggers are lines like the others; what is less is not shown."""
    logger = logging.getLogger("aiohttp.server")
    logger.info("chatter")
    logger.warning("slow %s\nclient", "one")
    try:
        raise ValueError("bad")
    except ValueError:
        logger.exception("Error handling request")
    logger.critical("very bad")
    shown = lines()
    assert [(line["level"], line["event"], line["logger"]) for line in shown] == [
        ("warning", "slow one\nclient", "aiohttp.server"),
        ("error", "Error handling request", "aiohttp.server"),
        ("error", "very bad", "aiohttp.server"),
    ]
    assert shown[1]["exception"]["type"] == "ValueError"
    assert "exception" not in shown[0]


def test_a_record_whose_arguments_do_not_fit(log: logs.Log, lines: Lines, clock: ManualClock) -> None:
    """A library's mistake in a message is shown as it stands, instead of a second error."""
    record = logging.LogRecord("aiohttp", logging.ERROR, __file__, 1, "args %s %s", ("too few",), None)
    logs._LibraryHandler(clock=clock).handle(record)
    assert [line["event"] for line in lines()] == ["args %s %s"]


def test_a_flood_of_a_library_is_summed_up(log: logs.Log, lines: Lines, clock: ManualClock) -> None:
    """Garbage from the network must not fill the disk by way of a library's complaints."""
    logger = logging.getLogger("aiohttp.server")
    for number in range(1000):
        logger.error("bad request %d", number)
    assert len(lines()) == logs.LIBRARY_LINES_PER_S
    clock.advance(1.0)
    logger.error("one more")
    summary, last = lines()
    assert (summary["event"], summary["count"]) == ("library lines left out", 1000 - logs.LIBRARY_LINES_PER_S)
    assert last["event"] == "one more"


def test_a_warning_of_python_is_a_line(log: logs.Log, lines: Lines) -> None:
    """Also a warning is one line, and it says where."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # The context manager has put its own function in place.
        warnings.showwarning = logs._warned
        warnings.warn("old\nthing", DeprecationWarning, stacklevel=1)
    (line,) = lines()
    assert (line["level"], line["event"], line["category"]) == ("warning", "old\nthing", "DeprecationWarning")
    assert re.fullmatch(r"unit/test_logs\.py:\d+", line["at"])


def test_exceptions_that_nobody_caught_are_lines(log: logs.Log, lines: Lines) -> None:
    """The end of the program, of a thread and of an object may fail: each is one line instead of a traceback."""
    try:
        raise ValueError("main")
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)

    def fail() -> None:
        raise ValueError("thread")

    thread = threading.Thread(target=fail, name="worker")
    thread.start()
    thread.join()

    class Unlucky:
        def __del__(self) -> None:
            raise ValueError("object")

    unlucky = Unlucky()
    del unlucky
    gc.collect()
    shown = lines()
    assert [(line["event"], line["exception"]["message"]) for line in shown] == [
        ("uncaught exception", "main"),
        ("thread failed", "thread"),
        ("unraisable exception", "object"),
    ]
    assert shown[1]["thread"] == "worker"


def test_interruption_is_no_fault(log: logs.Log, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is left to Python."""
    seen: list[BaseException] = []
    monkeypatch.setattr(sys, "__excepthook__", lambda kind, error, trace: seen.append(error))
    error = KeyboardInterrupt()
    sys.excepthook(KeyboardInterrupt, error, None)
    assert seen == [error]
    assert lines() == []


def test_close_gives_everything_back() -> None:
    """After the log's end the process logs as before, also when it was configured twice."""

    def state() -> tuple[object, ...]:
        root = logging.getLogger()
        hooks = (sys.excepthook, sys.unraisablehook, threading.excepthook, warnings.showwarning)
        return (tuple(root.handlers), root.level, hooks, structlog.is_configured())

    before = state()
    with logs.configure("json", "info", io.StringIO()):
        first = state()
        assert first != before
        with logs.configure("console", "error", io.StringIO()):
            assert state() != first
        assert state() == first
    assert state() == before


def test_a_second_configuration_reaches_an_observer_of_the_first(stream: io.StringIO) -> None:
    """The command line starts with defaults and configures anew when the file is read."""
    first = io.StringIO()
    with logs.configure("json", "info", first):
        observer = logs.LogObserver()
        with logs.configure("json", "info", stream):
            observer(notice_of(a=1))
    assert first.getvalue() == ""
    assert json.loads(stream.getvalue())["a"] == 1


@pytest.mark.parametrize(
    ("changes", "level", "name"),
    [
        ({}, "info", "session ended"),
        ({"who": "upstream", "cause": "close"}, "info", "session ended"),
        ({"who": "upstream", "cause": "lost", "client_code": 1011}, "warning", "session ended"),
        ({"status": 503, "client_code": None, "passed_over": (("d3", "ejected: timeout"),)}, "warning", "session not served"),
        ({"status": 429, "client_code": None}, "warning", "session not served"),
        ({"status": 400, "client_code": None}, "info", "session not served"),
        ({"status": 499, "client_code": None}, "info", "session not served"),
    ],
)
def test_what_hurts_a_caller_is_found_by_its_level(
    observer: logs.LogObserver, stream: io.StringIO, changes: dict[str, Any], level: str, name: str
) -> None:
    """A session that nobody could serve, or that was lost under its client, is a warning; one that never began did not end."""
    observer(record_of(**changes))
    line = json.loads(stream.getvalue())
    assert (line["level"], line["event"]) == (level, name)
    assert line["passed_over"] == dict(changes.get("passed_over", ()))


def test_a_program_around_the_router_gets_the_facts_of_a_session_as_they_are() -> None:
    """The log's own renderer is handed them in one piece; whoever brings another must find each by its name."""
    seen: list[dict[str, Any]] = []

    def keep(logger: object, method: str, facts: dict[str, Any]) -> str:
        seen.append(facts)
        return ""

    processors: list[Any] = [keep]
    observer = logs.LogObserver(structlog.wrap_logger(structlog.PrintLogger(io.StringIO()), processors=processors))
    observer(record_of(upstream_reason="bye\ud800", client="\udcff"))
    (facts,) = seen
    assert (facts["event"], facts["session"], facts["status"]) == ("session ended", "s", 101)
    assert facts.keys() == {"event"} | {field.name for field in dataclasses.fields(events.SessionRecord)}
    assert orjson.dumps(facts)


def test_hostile_words_in_a_record_are_made_harmless(observer: logs.LogObserver, lines: Lines, stream: io.StringIO) -> None:
    """A session's end is put together on a shorter way than other lines: what comes from outside is looked at there as well."""
    logs.register_secrets(["upstream-key-0123456789"])
    observer(record_of(upstream_reason="no upstream-key-0123456789\n" + "x" * 5000, client="\udcff\x1b[2J", principal="a\u2028b"))
    text = stream.getvalue()
    assert "upstream-key" not in text
    assert text.count("\n") == 1 and "\x1b" not in text and "\u2028" not in text
    (line,) = lines()
    assert len(line["upstream_reason"]) < 2000
