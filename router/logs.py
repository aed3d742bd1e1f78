"""The structured log: one JSON object or one console line an event, on standard error, by structlog.

What is logged at which level:

| level | what |
|---|---|
| error | a deployment that needs an operator (key, quota, access; at most once a minute each); the program's own faults |
| warning | a failed attempt or probe; an ejection; a session that nobody could serve (429, 5xx) or whose upstream was \
lost under it; warnings and errors of libraries (error stays error) |
| info | a session's end, with all that is known of it; a ready attempt that was not the session's first; an attempt given up \
with its client; a readmission; a cool-down; a refused request (a flood of them is summed up) |
| debug | a session's beginning; that it is ready; a ready first attempt; a ready probe |

Each line has ``timestamp`` (UTC), ``level`` and ``event`` (short, from a fixed set, except for libraries' messages), then facts;
the first one of a line by one of several workers is ``worker``, its number.
What comes from outside is bounded and escaped, so that it can neither break a line nor reach the terminal that shows it; what is
secret or looks like it is replaced (``redaction.py``). Writing a line never raises: a session must not end because the log is
full, closed, or gone. It does wait, though: whoever reads the other end of a pipe has to keep reading.

The standard library's logging (aiohttp, asyncio, uvloop), its warnings, and exceptions that nobody caught go the same way. There
is one of each in a process, hence ``configure`` reaches into globals, and gives them back with ``Log.close``.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from types import TracebackType
from typing import Any, Final, Literal, TextIO

import orjson
import structlog
from structlog.typing import FilteringBoundLogger

from router import events
from router.config.settings import Secret
from router.redaction import MASK, Redactor, secrets_of

__all__ = ["Log", "LogObserver", "configure", "register_secrets", "secrets_of", "shown", "shown_name"]

LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

# Bounds of what comes from outside. A line that is longer for all that is replaced by one that says so.
MAX_TEXT_CHARS: Final = 1000
MAX_MESSAGE_CHARS: Final = 2000  # of exceptions and libraries
MAX_ITEMS: Final = 50
MAX_DEPTH: Final = 5
MAX_FRAMES: Final = 12
MAX_CAUSES: Final = 4
MAX_LINE_CHARS: Final = 64 * 1024
# More of a text is not even searched for secrets; what is cut there is far behind what is shown.
_MAX_SEARCHED_CHARS: Final = 16 * 1024

# Lines of one kind a second before they are only counted.
REFUSALS_PER_S: Final = 10
LIBRARY_LINES_PER_S: Final = 10
ALARM_INTERVAL_S: Final = 60.0
COOL_DOWN_INTERVAL_S: Final = 1.0

# The process has one log, and so one set of secrets that it must not show: registered before ``configure`` or after it.
_redactor: Final = Redactor()
# Least level that the log shows, of ``logging``; everything until ``configure`` has said more.
_least_level = logging.NOTSET
_configured = 0  # how many ``configure`` are in force


def set_level(level: LogLevel) -> None:
    """Show from now on what is of this level or above, in the log that ``configure`` has set up."""
    global _least_level
    _least_level = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(**{**structlog.get_config(), "wrapper_class": structlog.make_filtering_bound_logger(_least_level)})


def register_secrets(secrets: Iterable[str | Secret]) -> None:
    """Hide these in every line from now on; call it with ``secrets_of(settings)`` for each generation of the configuration."""
    _redactor.register(secrets)


def shown(text: str, limit: int = MAX_TEXT_CHARS) -> str:
    """Return a text from outside as a line of the log would show it: legal Unicode, without secrets, bounded.

    For whatever else leaves the process.
    """
    return _text(text, limit)


def shown_name(name: str) -> str:
    """Return a name of the configuration likewise; one that only looks like a key is left as it is."""
    return _configured_name(name)


# --- text that cannot do harm --------------------------------------------------------------------


def clean(text: str) -> str:
    """Return a text as a line of the log would show it: legal Unicode, bounded, without the secrets that are known or look it."""
    return _text(text)


def _escapes() -> dict[int, str]:
    """Characters that end a line or steer a terminal → how they are shown; the notation is JSON's."""
    codes = [*range(0x20), *range(0x7F, 0xA0)]
    # Line and paragraph separators; marks that turn the direction of text; the byte order mark.
    codes += [0x2028, 0x2029, 0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF]
    table = {code: f"\\u{code:04x}" for code in codes}
    return table | {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}


_ESCAPES: Final = _escapes()
_PLAIN_VALUE: Final = re.compile(r"[\w./:@+*%~-]+")
# Facts whose name says that the value is none of the reader's business.
_SECRET_NAME: Final = re.compile(
    r"(?:^|[_-])(?:api[_-]?key|master[_-]?key|authorization|passw(?:or)?d|secret|credentials?|cookie|token)$", re.IGNORECASE
)
# Facts that are names of the configuration, or the router's own: "xai-voice" is a fine name for a group.
_CONFIGURED_NAMES: Final = frozenset({"session", "group", "deployment", "principal"})
# Facts whose values are few and the router's own words.
# Where a line's ``_Checked`` facts are; no name that anybody could give to a fact.
_CHECKED: Final = "\x00checked"
_OWN_WORDS: Final = frozenset({"who", "cause", "phase", "outcome", "reason"})


def _text(value: object, limit: int = MAX_TEXT_CHARS, *, redact: Callable[[str], str] = _redactor) -> str:
    """Anything as text: legal Unicode, without secrets, bounded."""
    text = _str(value)
    if len(text) > _MAX_SEARCHED_CHARS:
        shown = redact(text[:_MAX_SEARCHED_CHARS])
        # The cut may have gone through a secret, of which then neither half is found.
        shown = shown[: -max(_redactor.longest, 256)]
    else:
        shown = redact(text)
    if len(shown) > limit or len(text) > _MAX_SEARCHED_CHARS:
        shown = f"{shown[:limit]}… ({len(text)} characters)"
    return shown


def _configured_name(name: str) -> str:
    return _text(name, redact=_redactor.registered)


def _str(value: object) -> str:
    try:
        text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes | bytearray) else str(value)
    except Exception as error:  # somebody else's __str__
        text = f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        # A header's bytes that are not UTF-8 arrive as unpaired surrogates.
        text = text.encode("utf-8", "backslashreplace").decode()
    return text


def _plain(value: object, depth: int = 0) -> Any:
    """A fact as JSON can hold it."""
    if type(value) is str:
        return _text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, int):
        # JSON readers keep 64 bits at the most.
        return int(value) if -(2**63) <= value < 2**63 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, BaseException):
        return _exception(value)
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        if depth >= MAX_DEPTH:
            return "…"
        if isinstance(value, Mapping):
            return _facts(value, depth + 1)
        items = list(value)
        plain = [_plain(item, depth + 1) for item in items[:MAX_ITEMS]]
        return plain if len(items) <= MAX_ITEMS else [*plain, f"… ({len(items)} items)"]
    return _text(value)


class _Checked(dict[str, Any]):
    """Facts that were made plain where they were put together: names and types are the router's own, texts were cleaned."""


def _facts(facts: Mapping[Any, Any], depth: int = 0) -> dict[str, Any]:
    if type(facts) is _Checked:
        return facts
    plain: dict[str, Any] = {}
    for key, value in facts.items():
        if len(plain) >= MAX_ITEMS:
            plain["…"] = f"{len(facts)} items"
            break
        name = _redactor.known_word(key) if type(key) is str else None
        if name is None or len(name) > 100:
            name = _text(key, 100, redact=_redactor.word)
        if value is None or type(value) is bool or (type(value) is int and -(2**63) <= value < 2**63):
            plain[name] = value
        elif not isinstance(value, str | bytes):
            plain[name] = _plain(value, depth)
        elif name in _CONFIGURED_NAMES and isinstance(value, str):
            plain[name] = _configured_name(value)
        elif name in _OWN_WORDS:
            plain[name] = _text(value, redact=_redactor.word)
        elif value and _SECRET_NAME.search(name) is not None:
            plain[name] = MASK
        else:
            plain[name] = _plain(value, depth)
    return plain


def _exception(error: BaseException, depth: int = 0) -> dict[str, Any]:
    """An exception as one fact: what, where, and what it came from."""
    shown: dict[str, Any] = {"type": type(error).__name__, "message": _text(error, MAX_MESSAGE_CHARS)}
    frames = traceback.extract_tb(error.__traceback__, limit=-MAX_FRAMES)
    if frames:
        # The innermost last; two parts of the path tell the file, the rest only tells of the machine.
        shown["at"] = [_text(f"{'/'.join(frame.filename.split(os.sep)[-2:])}:{frame.lineno} {frame.name}") for frame in frames]
    if depth >= MAX_CAUSES:
        return shown
    if isinstance(error, BaseExceptionGroup):
        shown["exceptions"] = [_exception(inner, depth + 1) for inner in error.exceptions[:MAX_CAUSES]]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        shown["cause"] = _exception(cause, depth + 1)
    return shown


# --- from an event to a line ---------------------------------------------------------------------


class _Renderer:
    """structlog's last processor: facts → a line. It must not raise, for whoever logs does not expect it."""

    def __init__(self, *, console: bool, colour: bool, worker: int | None) -> None:
        self._render = _Console(colour) if console else _json
        self._worker = {} if worker is None else {"worker": worker}

    def __call__(self, logger: object, method: str, facts: MutableMapping[str, Any]) -> str:
        try:
            line = self._line(facts)
        except Exception as error:  # a fault of this module must not end a session
            lost = _str(facts.get("event", ""))
            line = self._line({"event": "log line lost", "level": "error", "lost": lost, "error": type(error).__name__})
        return line

    def _line(self, facts: MutableMapping[str, Any]) -> str:
        facts = dict(facts)
        head = {
            "timestamp": facts.pop("timestamp", ""),
            "level": facts.pop("level", "info"),
            "event": _text(facts.pop("event", ""), MAX_MESSAGE_CHARS),
            **self._worker,
        }
        error = _error_of(facts.pop("exc_info", None))
        checked = facts.pop(_CHECKED, None)
        plain = _facts(facts)
        if checked is not None:
            plain.update(checked)
        if error is not None:
            plain["exception"] = _exception(error)
        line = self._render(head, plain)
        if len(line) > MAX_LINE_CHARS:
            line = self._render(head, {"left_out": f"{len(line)} characters of facts"})
        return line


def _error_of(exc_info: object) -> BaseException | None:
    """What structlog and the standard library call ``exc_info``, in all its shapes."""
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple) and len(exc_info) == 3:
        return exc_info[1] if isinstance(exc_info[1], BaseException) else None
    return sys.exc_info()[1] if exc_info else None


def _json(head: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    # A fact cannot take the place of what every line has.
    line = orjson.dumps({**head, **{f"{key}_" if key in head else key: value for key, value in facts.items()}}).decode()
    # What orjson leaves as it is and what some readers of lines take for the end of one. Of ASCII that is DEL alone.
    return line if line.isascii() and "\x7f" not in line else line.translate(_ESCAPES)


class _Console:
    """``time level event  key=value …``, for people."""

    _COLOURS: Final = {"debug": "\x1b[2m", "info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}

    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def __call__(self, head: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
        level = head["level"]
        if "worker" in head:
            facts = {"worker": head["worker"], **{"worker_" if key == "worker" else key: facts[key] for key in facts}}
        # An empty fact tells a person nothing.
        pairs = [
            (str(key).translate(_ESCAPES), _value(value)) for key, value in facts.items() if value not in (None, "", [], {})
        ]
        event = head["event"].translate(_ESCAPES)
        if not self._colour:
            return f"{head['timestamp']} {level:<7} {event:<24}" + "".join(f" {key}={value}" for key, value in pairs)
        dim, off = "\x1b[2m", "\x1b[0m"
        return (
            f"{dim}{head['timestamp']}{off} {self._COLOURS.get(level, '')}{level:<7}{off} \x1b[1m{event:<24}{off}"
            + "".join(f" {dim}{key}={off}{value}" for key, value in pairs)
        )


def _value(value: Any) -> str:
    if isinstance(value, str):
        shown = value if _PLAIN_VALUE.fullmatch(value) else orjson.dumps(value).decode()
    else:
        shown = orjson.dumps(value).decode()
    return shown.translate(_ESCAPES)


class _Sink:
    """Where lines go. Writing may fail, and whoever logs is not told."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        # Reentrant: a signal's handler may log while the thread it interrupted is writing.
        self._lock = threading.RLock()
        self.lost = 0

    def write(self, line: str) -> None:
        """Write a line, whole."""
        with self._lock:
            try:
                self._write(f"{line}\n")
            except UnicodeError:
                self._write_ascii(f"{line}\n")
            except Exception:  # closed, broken pipe, disk full, no stream at all
                self.lost += 1

    def _write(self, text: str) -> None:
        if self._stream is None:
            raise ValueError("no stream")
        self._stream.write(text)
        self._stream.flush()

    def _write_ascii(self, text: str) -> None:
        try:
            self._write(text.encode("ascii", "backslashreplace").decode())
        except Exception:  # as above
            self.lost += 1

    # The names structlog calls it by.
    debug = info = warning = error = critical = exception = msg = log = write


# --- setting it up -------------------------------------------------------------------------------


class Log:
    """The log of the process, from ``configure`` to ``close``."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        root = logging.getLogger()
        self._root_before = (root.handlers[:], root.level)
        self._structlog_before = structlog.get_config() if structlog.is_configured() else None
        self._least_level_before = _least_level
        self._hooks_before = (sys.excepthook, sys.unraisablehook, threading.excepthook, warnings.showwarning)

    @property
    def lost(self) -> int:
        """Lines that could not be written."""
        return self._sink.lost

    def close(self) -> None:
        """Give the standard library's logging, structlog and the hooks back as they were found; last opened, first closed."""
        root = logging.getLogger()
        root.handlers[:], level = self._root_before
        root.setLevel(level)
        sys.excepthook, sys.unraisablehook, threading.excepthook, warnings.showwarning = self._hooks_before
        structlog.reset_defaults()
        global _configured, _least_level
        _configured -= 1
        _least_level = self._least_level_before
        if self._structlog_before is not None:
            structlog.configure(**self._structlog_before)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def configure(
    format: LogFormat = "auto",
    level: LogLevel = "info",
    stream: TextIO | None = None,
    *,
    worker: int | None = None,
    environ: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.monotonic,
) -> Log:
    """Send the process's log to ``stream``.

    Args:
        format: ``auto`` is ``console`` on a terminal, else ``json``. Colours are for terminals only, and not with ``NO_COLOR``.
        level: least level that is shown; libraries are shown from ``warning`` on, whatever it is.
        stream: standard error when left out.
        worker: number of this process among several that write to one stream; in each line.
        environ: for ``NO_COLOR`` and ``TERM``.
        clock: monotonic seconds, for the bound on floods.

    Returns:
        What ends it; a program that logs until it exits need not keep it.
    """
    stream = sys.stderr if stream is None else stream
    terminal = _is_terminal(stream)
    number = logging.getLevelNamesMapping()[level.upper()]
    sink = _Sink(stream)
    log = Log(sink)
    global _configured, _least_level
    _configured += 1
    _least_level = number
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _Renderer(
                console=format == "console" or (format == "auto" and terminal),
                colour=terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb",
                worker=worker,
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        context_class=dict,
        logger_factory=lambda *_: sink,
        # Bound anew for each line, so that a second ``configure`` reaches everybody.
        cache_logger_on_first_use=False,
    )
    handler = _LibraryHandler(clock=clock)
    handler.setLevel(max(number, logging.WARNING))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    sys.excepthook = _uncaught
    sys.unraisablehook = _unraisable
    threading.excepthook = _thread_failed
    warnings.showwarning = _warned
    return log


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except Exception:  # closed, or not a stream of the usual kind
        return False


def _logger() -> FilteringBoundLogger:
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


class _LibraryHandler(logging.Handler):
    """The standard library's records, one line each."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        super().__init__()
        self._flood = _Flood(LIBRARY_LINES_PER_S, clock=clock)

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record. Garbage from the network can make a library write thousands of them, so what is too much is counted."""
        suppressed = self._flood.due()
        if suppressed:
            _logger().warning("library lines left out", **suppressed)
        if not self._flood.admits(record.name):
            return
        try:
            message = record.getMessage()
        except Exception:  # its arguments do not fit its format
            message = _str(record.msg)
        level = "error" if record.levelno >= logging.ERROR else "warning"
        getattr(_logger(), level)(message, logger=record.name, **({"exc_info": record.exc_info} if record.exc_info else {}))


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not isinstance(error, Exception):  # Ctrl-C
        sys.__excepthook__(kind, error, trace)
        return
    _logger().error("uncaught exception", exc_info=error)


def _unraisable(args: Any) -> None:
    _logger().error("unraisable exception", what=args.err_msg or "", exc_info=args.exc_value)


def _thread_failed(args: Any) -> None:
    if isinstance(args.exc_value, Exception):
        _logger().error("thread failed", thread="" if args.thread is None else args.thread.name, exc_info=args.exc_value)


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _logger().warning(
        _str(message), logger="py.warnings", category=category.__name__, at=f"{'/'.join(filename.split(os.sep)[-2:])}:{lineno}"
    )


# --- too much of the same ------------------------------------------------------------------------


class _Flood:
    """Lets so many lines a second through and counts the rest, by kind."""

    def __init__(self, per_s: int, *, clock: Callable[[], float]) -> None:
        self._per_s = per_s
        self._clock = clock
        self._window = -math.inf  # when the current second began
        self._admitted = 0
        self._suppressed: dict[str, int] = {}

    def admits(self, kind: str) -> bool:
        """Whether a line may be written now; if not, it is counted."""
        now = self._clock()
        if now - self._window >= 1.0:
            self._window = now
            self._admitted = 0
        if self._admitted < self._per_s:
            self._admitted += 1
            return True
        # A kind more is a line longer: what is beyond the bound of items goes under one name.
        kind = kind if kind in self._suppressed or len(self._suppressed) < MAX_ITEMS - 1 else "other"
        self._suppressed[kind] = self._suppressed.get(kind, 0) + 1
        return False

    def due(self, *, now: bool = False) -> dict[str, Any]:
        """What was left out, told once, when its second is over (or ``now``); empty when there is nothing to tell."""
        if not self._suppressed or not (now or self._clock() - self._window >= 1.0):
            return {}
        counts, self._suppressed = self._suppressed, {}
        return {"count": sum(counts.values()), "kinds": counts}


class _Repeats:
    """Lets one line an interval through for each name, and counts what it held back."""

    def __init__(self, interval_s: float, *, clock: Callable[[], float]) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._last: dict[str, tuple[float, int]] = {}  # name → when it was let through, how many were held back since

    def admits(self, name: str) -> int | None:
        """How many were held back since the last one that was let through; ``None``: this one is held back as well."""
        now = self._clock()
        last_at, held = self._last.get(name, (-math.inf, 0))
        if now - last_at < self._interval_s:
            self._last[name] = (last_at, held + 1)
            return None
        self._last[name] = (now, 0)
        return held


# --- the observer --------------------------------------------------------------------------------

# Failures that are the client's, not the deployment's.
_CLIENTS_OUTCOMES: Final = frozenset({"client_gone", "client_request"})
_LEVELS: Final = frozenset({"debug", "info", "warning", "error"})
# Names that a notice's facts may not take, for structlog's methods have parameters of these names.
_RESERVED: Final = frozenset({"self", "event", "level", "timestamp", "exc_info", "method_name"})


class LogObserver:
    """Writes the core's events to the log.

    Args:
        logger: structlog's, as ``configure`` (or the program around the router) has set it up, when left out.
        clock: monotonic seconds.
        refusals_per_s: lines about refused requests a second; more are summed up, or whoever guesses keys could fill a disk.
    """

    def __init__(
        self,
        logger: FilteringBoundLogger | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        refusals_per_s: int = REFUSALS_PER_S,
    ) -> None:
        self._log = _logger() if logger is None else logger
        self._foreign = logger is not None
        self._refusals = _Flood(refusals_per_s, clock=clock)
        self._alarms = _Repeats(ALARM_INTERVAL_S, clock=clock)
        self._cool_downs = _Repeats(COOL_DOWN_INTERVAL_S, clock=clock)
        # Sessions under way → attempts that ended so far.
        self._attempts: dict[str, int] = {}
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            events.SessionStarted: self._session_started,
            events.SessionRefused: self._session_refused,
            events.Attempt: self._attempt,
            events.SessionReady: self._session_ready,
            events.SessionRecord: self._session_ended,
            events.Ejected: self._ejected,
            events.Admitted: self._admitted,
            events.CooledDown: self._cooled_down,
            events.ConfigAlarm: self._config_alarm,
            events.Probed: self._probed,
            events.Reloaded: self._reloaded,
            events.Notice: self._notice,
        }

    def __call__(self, event: events.Event) -> None:
        """Log an event; what passes within a session (traffic, usage, first audio) is in the line of its end."""
        # Any event will do: there is no timer here, and a flood that has ended is not followed by another refusal.
        self.flush(now=False)
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def _renders(self) -> bool:
        """Whether this module makes the line; a program around the router may have structlog write it in its own way."""
        return not self._foreign and _configured > 0

    def _details(self) -> bool:
        """Whether debug lines are shown; a line that is not costs as much as half of one that is."""
        return self._foreign or _least_level <= logging.DEBUG

    def flush(self, *, now: bool = True) -> None:
        """Tell what was left out of a flood and not told yet; with ``now=False`` only when its second is over."""
        suppressed = self._refusals.due(now=now)
        if suppressed:
            self._log.info("requests refused", **suppressed)

    # --- sessions -----------------------------------------------------------------------------------

    def _session_started(self, event: events.SessionStarted) -> None:
        self._attempts[event.session] = 0
        if self._details():
            self._log.debug(
                "session started", session=event.session, group=event.group, principal=event.principal, client=event.client
            )

    def _session_refused(self, event: events.SessionRefused) -> None:
        if self._refusals.admits(event.code):
            self._log.info(
                "request refused",
                session=event.session,
                status=event.status,
                code=event.code,
                detail=event.detail,
                client=event.client,
                **{name: value for name, value in (("principal", event.principal), ("model", event.model)) if value},
            )

    def _attempt(self, event: events.Attempt) -> None:
        before = self._attempts.get(event.session)
        if before is not None:
            self._attempts[event.session] = before + 1
        # One that lost a race is not the session's first, even when it began first.
        expected = event.outcome == "ready" and before == 0 and not event.raced
        if expected and not self._details():
            return
        facts: dict[str, Any] = {
            "session": event.session,
            "group": event.group,
            "deployment": event.deployment,
            "outcome": event.outcome,
            "ms": _ms(event.seconds),
        }
        if event.detail:
            facts["detail"] = event.detail
        if event.raced:
            facts["raced"] = True
        if event.outcome == "ready":
            (self._log.debug if expected else self._log.info)("attempt ready", **facts)
        elif event.outcome in _CLIENTS_OUTCOMES:
            self._log.info("attempt ended", **facts)
        else:
            self._log.warning("attempt failed", **facts)

    def _session_ready(self, event: events.SessionReady) -> None:
        if not self._details():
            return
        self._log.debug(
            "session ready",
            session=event.session,
            group=event.group,
            deployment=event.deployment,
            ms=_ms(event.seconds),
            attempts=event.attempts,
            fallback=event.fallback,
        )

    def _session_ended(self, event: events.SessionRecord) -> None:
        self._attempts.pop(event.session, None)
        served = event.status == 101
        lost = event.who == "upstream" and event.cause != "close"
        # What hurt a caller must be found by its level: nobody could serve it, or its call was lost under it.
        log = self._log.warning if lost or event.status == 429 or event.status >= 500 else self._log.info
        name = _configured_name
        # Every field is named in ``SessionRecord``: numbers, the configuration's names, the router's own words. What is none of
        # these goes through ``_text``. (Looked at one by one like those of other lines, they took a tenth of a session's cost.)
        facts = _Checked(
            session=event.session,
            group=name(event.group),
            principal=name(event.principal),
            client=_text(event.client),
            deployment=name(event.deployment),
            who=event.who,
            cause=event.cause,
            phase=event.phase,
            status=event.status,
            client_code=event.client_code,
            upstream_code=event.upstream_code,
            upstream_reason=_text(event.upstream_reason),
            seconds=_s(event.seconds),
            ready_s=_s(event.ready_s),
            first_audio_s=_s(event.first_audio_s),
            client_bytes=event.client_bytes,
            upstream_bytes=event.upstream_bytes,
            client_events=event.client_events,
            upstream_events=event.upstream_events,
            turns=event.turns,
            usage=_plain(event.usage.as_dict()),
            attempts=[
                {"deployment": name(attempt.deployment), "outcome": attempt.outcome, "ms": _ms(attempt.seconds)}
                for attempt in event.attempts[:MAX_ITEMS]
            ],
            generation=event.generation,
            passed_over=_plain(dict(event.passed_over)),
        )
        log("session ended" if served else "session not served", **({_CHECKED: facts} if self._renders() else facts))

    # --- deployments --------------------------------------------------------------------------------

    def _ejected(self, event: events.Ejected) -> None:
        self._log.warning(
            "deployment ejected",
            deployment=event.deployment,
            group=event.group,
            reason=event.reason,
            seconds=_s(event.seconds),
            in_a_row=event.in_a_row,
        )

    def _admitted(self, event: events.Admitted) -> None:
        self._log.info("deployment admitted", deployment=event.deployment, group=event.group)

    def _cooled_down(self, event: events.CooledDown) -> None:
        held = self._cool_downs.admits(event.deployment)
        if held is not None:
            facts = {"held_back": held} if held else {}
            self._log.info(
                "deployment cools down",
                deployment=event.deployment,
                group=event.group,
                seconds=_s(event.seconds),
                **facts,
            )

    def _config_alarm(self, event: events.ConfigAlarm) -> None:
        held = self._alarms.admits(event.deployment)
        if held is not None:
            facts = {"held_back": held} if held else {}
            self._log.error(
                "deployment needs an operator",
                deployment=event.deployment,
                group=event.group,
                detail=event.detail,
                **facts,
            )

    def _probed(self, event: events.Probed) -> None:
        tell = self._log.debug if event.outcome == "ready" else self._log.warning
        tell(
            "probe ended",
            deployment=event.deployment,
            group=event.group,
            outcome=event.outcome,
            ms=_ms(event.seconds),
            detail=event.detail,
        )

    # --- the configuration --------------------------------------------------------------------------

    def _reloaded(self, event: events.Reloaded) -> None:
        facts: dict[str, Any] = {"generation": event.generation, "trigger": event.trigger}
        if event.errors:
            self._log.error("configuration refused", **facts, problems=len(event.errors))
            for problem in event.errors[:MAX_ITEMS]:
                self._log.error("configuration", problem=str(problem))
            return
        for name in ("added", "changed", "removed"):
            if getattr(event, name):
                facts[name] = list(getattr(event, name))[:MAX_ITEMS]
        self._log.info("configuration applied", **facts)
        for problem in event.warnings[:MAX_ITEMS]:
            self._log.warning("configuration", warning=str(problem))
        for key in event.restart_needed:
            self._log.warning("configuration", warning=f"{key}: has changed, and the change waits for a restart")

    def _notice(self, event: events.Notice) -> None:
        facts = {f"{key}_" if key in _RESERVED else str(key): value for key, value in event.facts.items()}
        getattr(self._log, event.level if event.level in _LEVELS else "info")(event.event, **facts)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _s(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
