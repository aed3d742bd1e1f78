"""What a session said and cost, from the messages that pass: counts by type, turns, time to first audio, usage exactly once.

A ``Tap`` of the relay: called for every message, so it does as little as it can; it looks into the payload of a few types only.
Pure: no asyncio, and the clock is handed in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from router.events import Turn
from router.jsontext import parse_object
from router.relay.contract import Phase, Side
from router.relay.fastpath import FastPath, HotTable, hot_table
from router.relay.frames import BINARY
from router.usage import Usage, response_usage, tightest_limit, transcription_usage

TRANSCRIPTION_COMPLETED: Final = "conversation.item.input_audio_transcription.completed"
RATE_LIMITS_UPDATED: Final = "rate_limits.updated"
COLLECTED: Final = frozenset({"response.done", "error", TRANSCRIPTION_COMPLETED, RATE_LIMITS_UPDATED})

# PROTOCOL §3 and §4; metric labels, so what is not listed is counted as ``other``.
CLIENT_TYPES: Final = frozenset(
    {
        "session.update",
        "transcription_session.update",
        "input_audio_buffer.append",
        "input_audio_buffer.commit",
        "input_audio_buffer.clear",
        "conversation.item.create",
        "conversation.item.retrieve",
        "conversation.item.truncate",
        "conversation.item.delete",
        "conversation.item.commit",
        "response.create",
        "response.cancel",
        "output_audio_buffer.clear",
        "ping",
        "pong",
    }
)
UPSTREAM_TYPES: Final = frozenset(
    {
        "error",
        "session.created",
        "session.updated",
        "transcription_session.created",
        "transcription_session.updated",
        "conversation.created",
        "conversation.item.created",
        "conversation.item.added",
        "conversation.item.done",
        "conversation.item.retrieved",
        "conversation.item.truncated",
        "conversation.item.deleted",
        "conversation.item.input_audio_transcription.delta",
        "conversation.item.input_audio_transcription.updated",
        TRANSCRIPTION_COMPLETED,
        "conversation.item.input_audio_transcription.failed",
        "conversation.item.input_audio_transcription.segment",
        "input_audio_buffer.committed",
        "input_audio_buffer.cleared",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.timeout_triggered",
        "input_audio_buffer.dtmf_event_received",
        "output_audio_buffer.started",
        "output_audio_buffer.stopped",
        "output_audio_buffer.cleared",
        "response.created",
        "response.done",
        "response.output_item.added",
        "response.output_item.done",
        "response.content_part.added",
        "response.content_part.done",
        "response.output_text.delta",
        "response.output_text.done",
        "response.output_audio.delta",
        "response.output_audio.done",
        "response.output_audio_transcript.delta",
        "response.output_audio_transcript.done",
        "response.text.delta",
        "response.text.done",
        "response.audio.delta",
        "response.audio.done",
        "response.audio_transcript.delta",
        "response.audio_transcript.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.mcp_call_arguments.delta",
        "response.mcp_call_arguments.done",
        "response.mcp_call.in_progress",
        "response.mcp_call.completed",
        "response.mcp_call.failed",
        "mcp_list_tools.in_progress",
        "mcp_list_tools.completed",
        "mcp_list_tools.failed",
        RATE_LIMITS_UPDATED,
        "ping",
    }
)
OTHER: Final = "other"
BINARY_TYPE: Final = "binary"
KNOWN_TYPES: Final = CLIENT_TYPES | UPSTREAM_TYPES | {BINARY_TYPE}

# Nearly all messages of a session. The fast paths count them without telling anybody.
HOT_CLIENT_TYPES: Final = ("input_audio_buffer.append",)
HOT_UPSTREAM_TYPES: Final = (
    "response.output_audio.delta",
    "response.audio.delta",
    "response.output_audio_transcript.delta",
    "response.audio_transcript.delta",
    "response.output_text.delta",
    "response.function_call_arguments.delta",
)

_AUDIO_IN: Final = "input_audio_buffer.append"
# By these a client says that it has sent all that its user said, or that none of it counts.
_FINISHED: Final = frozenset({"input_audio_buffer.commit", "input_audio_buffer.clear"})
_AUDIO_DELTAS: Final = frozenset({"response.output_audio.delta", "response.audio.delta"})
_HOT_CLIENT: Final = hot_table(HOT_CLIENT_TYPES, masked=True)
_HOT_UPSTREAM: Final = hot_table(HOT_UPSTREAM_TYPES, masked=False)
# Until an answer's first audio has come, audio is not hot: each delta is looked at.
_HOT_BEFORE_AUDIO: Final = hot_table(HOT_UPSTREAM_TYPES, masked=False, without=_AUDIO_DELTAS)
# Ids remembered so that nothing is billed twice; two hours of rapid turns have fewer.
_REMEMBERED_IDS: Final = 8192
# Answers under way that are timed, for whoever wants to be told of turns; more at a time are no conversation.
_MOST_OPEN_TURNS: Final = 32
_STATUSES: Final = frozenset({"completed", "cancelled", "failed", "incomplete"})

Counts = dict[tuple[str, str], tuple[int, int]]


class _OpenTurn:
    """An answer under way."""

    __slots__ = ("began_at", "first_audio_s")

    def __init__(self, began_at: float) -> None:
        self.began_at = began_at
        self.first_audio_s: float | None = None  # from the end of speech; only set once there was audio


class Accounting:
    """One session's books.

    Args:
        clock: monotonic seconds.
        on_usage: told of each bill once.
        on_first_audio: told of each turn's seconds from the end of speech to the first audio.
        on_trouble: told of the code and type of an ``error`` event or a failed response.
        on_limits: told of the share of the provider's tightest limit that is used up, 0 to 1, and the seconds until it is whole.
        on_tick: called with monotonic seconds, twice a second.
        on_turn: told of each answer when it ends; ``None``: nobody wants to know, and nothing is kept for it.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        on_usage: Callable[[Usage], None],
        on_first_audio: Callable[[float], None],
        on_trouble: Callable[[str, str], None],
        on_limits: Callable[[float, float], None],
        on_tick: Callable[[float], None],
        on_turn: Callable[[Turn], None] | None = None,
    ) -> None:
        self.collect = COLLECTED
        self.usage = Usage()
        self.turns = 0  # responses that were completed, whatever their status; each id once
        self.first_audio_s: float | None = None  # of the first turn that had audio
        self._clock = clock
        self._on_usage = on_usage
        self._on_first_audio = on_first_audio
        self._on_trouble = on_trouble
        self._on_limits = on_limits
        self._on_tick = on_tick
        self._on_turn = on_turn
        # Of the answers under way, the oldest first. Which of them an event belongs to is not looked at: answers of one
        # conversation follow each other.
        self._open_turns: deque[_OpenTurn] = deque(maxlen=_MOST_OPEN_TURNS)
        self._open_responses = 0
        # When the user stopped speaking; only set while the answer's first audio is awaited.
        self._speech_ended_at: float | None = None
        # An answer from before the end of speech is still being sent: its audio is not the one that is awaited.
        self._older_answer = False
        self._speaking = False  # as the provider hears it
        self._answer_due = False  # it was asked for, and has not begun
        # Audio that the client sent, in messages, and how much of it when it said last that its user has finished. ``None``: it
        # never did, so it is the provider who listens for that, and audio comes whether anybody speaks or not.
        self._appended = 0
        self._committed: int | None = None
        self._billed: dict[str, None] = {}
        self._done_ids: dict[str, None] = {}
        # Since the last ``take_counts``: [messages, payload bytes] by type. Those of hot types are counted by the fast paths.
        self._counts: dict[Side, dict[str, list[int]]] = {"client": {}, "upstream": {}}
        self._fast: dict[Side, FastPath] = {}  # once the legs are joined

    def join(self, client: FastPath, upstream: FastPath) -> None:
        """The session begins."""
        self._fast = {"client": client, "upstream": upstream}
        client.hot = _HOT_CLIENT
        upstream.hot = _HOT_UPSTREAM

    def close(self) -> None:
        """The books are closed: let go of those who were told, who refer to it as well."""
        self._on_usage = self._on_first_audio = self._on_tick = _nobody
        self._on_trouble = self._on_limits = _nobody
        self._on_turn = None
        self._fast = {}

    def end_turns(self) -> None:
        """The session has ended: so have the answers that were under way."""
        while self._on_turn is not None and self._open_turns:
            self._turn_ended(self._on_turn, status="unfinished")

    @property
    def phase(self) -> Phase:
        """A turn lasts from ``response.created`` to ``response.done``."""
        return "turn" if self._open_responses else "idle"

    @property
    def quiet(self) -> bool:
        """Neither an answer is under way or due, nor does the user speak."""
        if self._open_responses or self._speaking or self._answer_due:
            return False
        if self._committed is None:
            return True
        self._count_hot()
        return self._appended == self._committed

    def tick(self, now: float) -> None:
        """Twice a second."""
        self._on_tick(now)

    def message(self, side: Side, opcode: int, event_type: str | None, size: int, payload: bytes | None) -> None:
        """Book a message."""
        if opcode == BINARY:
            name = BINARY_TYPE
        elif event_type is not None and event_type in (CLIENT_TYPES if side == "client" else UPSTREAM_TYPES):
            name = event_type
        else:
            name = OTHER
        self._count(side, name, 1, size)
        if side == "client":
            if name == "input_audio_buffer.commit":
                self._speech_ended()
            elif name == "response.create":
                self._answer_due = True
            if name in _FINISHED:
                self._count_hot()
                self._committed = self._appended
            return
        if self._speech_ended_at is not None and (name in _AUDIO_DELTAS or name == BINARY_TYPE):
            if not self._older_answer:
                self._first_audio()
        elif name in _HANDLERS:
            _HANDLERS[name](self, payload)

    def take_counts(self) -> Counts:
        """Return the counts since the last call: (side, type) → (messages, payload bytes)."""
        self._count_hot()
        taken: Counts = {
            (side, name): (entry[0], entry[1]) for side, counts in self._counts.items() for name, entry in counts.items()
        }
        for counts in self._counts.values():
            counts.clear()
        return taken

    def _count_hot(self) -> None:
        """Take over what the fast paths have counted."""
        for side, fast in self._fast.items():
            hot = fast.take_counts()
            for index, name in enumerate(HOT_CLIENT_TYPES if side == "client" else HOT_UPSTREAM_TYPES):
                if hot[2 * index]:
                    self._count(side, name, hot[2 * index], hot[2 * index + 1])

    def _count(self, side: Side, name: str, messages: int, size: int) -> None:
        if name == _AUDIO_IN:
            self._appended += messages
        counts = self._counts[side]
        entry = counts.get(name)
        if entry is None:
            counts[name] = [messages, size]
        else:
            entry[0] += messages
            entry[1] += size

    # --- single types -------------------------------------------------------------------------------

    def _first_audio(self) -> None:
        assert self._speech_ended_at is not None
        seconds = self._clock() - self._speech_ended_at
        self._stop_waiting_for_audio()
        if self.first_audio_s is None:
            self.first_audio_s = seconds
        if self._open_turns:
            self._open_turns[-1].first_audio_s = seconds
        self._on_first_audio(seconds)

    def _speech_ended(self, payload: bytes | None = None) -> None:
        self._speaking = False
        self._answer_due = True
        self._speech_ended_at = self._clock()
        self._make_hot(_HOT_BEFORE_AUDIO)
        self._older_answer = self._open_responses > 0

    def _speech_started(self, payload: bytes | None) -> None:
        # The user speaks again before any answer: what is measured is the answer to what comes now.
        self._stop_waiting_for_audio()
        self._speaking = True

    def _stop_waiting_for_audio(self) -> None:
        self._speech_ended_at = None
        self._make_hot(_HOT_UPSTREAM)

    def _make_hot(self, table: HotTable) -> None:
        upstream = self._fast.get("upstream")
        if upstream is not None:
            upstream.hot = table

    def _response_created(self, payload: bytes | None) -> None:
        self._open_responses += 1
        self._answer_due = False
        self._older_answer = False
        if self._on_turn is not None:
            began = self._speech_ended_at
            self._open_turns.append(_OpenTurn(self._clock() if began is None else began))

    def _response_done(self, payload: bytes | None) -> None:
        event = _parse(payload)
        response = _object(event, "response")
        new = _remember(self._done_ids, _text(response, "id"))
        if new:
            self.turns += 1
            self._open_responses = max(0, self._open_responses - 1)
            self._older_answer = False
        # xAI puts it beside the response (PROTOCOL §4).
        usage = _object(response, "usage") or _object(event, "usage")
        billed = self._bill(_text(response, "id"), response_usage(usage)) if usage else None
        error = _object(_object(response, "status_details"), "error")
        if error:
            self._on_trouble(_text(error, "code"), _text(error, "type"))
        if new and self._on_turn is not None:
            status = _text(response, "status")
            self._turn_ended(
                self._on_turn,
                status=status if status in _STATUSES else OTHER,
                response=_text(response, "id"),
                error=_text(error, "code") or _text(error, "type"),
                usage=billed,
            )

    def _turn_ended(
        self, tell: Callable[[Turn], None], *, status: str, response: str = "", error: str = "", usage: Usage | None = None
    ) -> None:
        now = self._clock()
        # One that nobody saw begin, in the place of which there is nothing, has taken no time.
        turn = self._open_turns.popleft() if self._open_turns else _OpenTurn(now)
        tell(
            Turn(
                seconds=now - turn.began_at,
                first_audio_s=turn.first_audio_s,
                status=status,
                response=response,
                error=error,
                usage=Usage() if usage is None else usage,
            )
        )

    def _transcribed(self, payload: bytes | None) -> None:
        event = _parse(payload)
        usage = _object(event, "usage")
        if usage:
            # An item may hold several parts, each with a transcription of its own.
            part = event.get("content_index", 0)
            item = _text(event, "item_id")
            self._bill(f"{item}/{part}" if item and isinstance(part, int) else "", transcription_usage(usage))

    def _rate_limits(self, payload: bytes | None) -> None:
        tightest = tightest_limit(_parse(payload).get("rate_limits"))
        if tightest is not None:
            self._on_limits(*tightest)

    def _error(self, payload: bytes | None) -> None:
        self._answer_due = False  # that may be what was refused
        error = _object(_parse(payload), "error")
        if error:
            self._on_trouble(_text(error, "code"), _text(error, "type"))

    def _bill(self, billed_id: str, usage: Usage) -> Usage | None:
        """Add a bill unless its id was billed before; the first one counts. Returns it, or ``None``."""
        if not _remember(self._billed, billed_id):
            return None
        self.usage = self.usage + usage
        self._on_usage(usage)
        return usage


_HANDLERS: Final[dict[str, Callable[[Accounting, bytes | None], None]]] = {
    "input_audio_buffer.speech_stopped": Accounting._speech_ended,
    "input_audio_buffer.speech_started": Accounting._speech_started,
    "response.created": Accounting._response_created,
    "response.done": Accounting._response_done,
    TRANSCRIPTION_COMPLETED: Accounting._transcribed,
    RATE_LIMITS_UPDATED: Accounting._rate_limits,
    "error": Accounting._error,
}


def _nobody(*told: object) -> None:
    """Who is told once the books are closed."""


def _remember(ids: dict[str, None], new: str) -> bool:
    """Whether an id is met for the first time; an empty one always is."""
    if not new:
        return True
    if new in ids:
        return False
    ids[new] = None
    if len(ids) > _REMEMBERED_IDS:
        ids.pop(next(iter(ids)))
    return True


def _parse(payload: bytes | None) -> dict[str, Any]:
    return {} if payload is None else parse_object(payload)


def _object(event: dict[str, Any], key: str) -> dict[str, Any]:
    value = event.get(key)
    return value if isinstance(value, dict) else {}


def _text(event: dict[str, Any], key: str) -> str:
    value = event.get(key)
    return value if isinstance(value, str) and len(value) <= 256 else ""
