"""One answer as a generator of timed steps, and the transcription of one turn of the user as another.

A step's number is when the next events are due, in seconds since the job began, at a pace of 1. Whoever drives the job waits
that long (or not at all), and resumes it. Cancelling is ending the generator and calling ``cancel``, which sends what a cut-off
answer still owes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from router.simulator import mind
from router.simulator.audio import PIECE_MS, Speech, split_words
from router.simulator.items import INPUT_TOKENS_PER_S, OUTPUT_TOKENS_PER_S, Item, Tokens, text_tokens
from router.simulator.schema import Json
from router.simulator.shapes import Effective, ResponseRequest

if TYPE_CHECKING:
    from router.simulator.session import Session

Status = Literal["in_progress", "completed", "cancelled", "failed", "incomplete"]

THINK_S = 0.3  # before the first output, about what a speech-to-speech model takes
TEXT_STEP_S = 0.03  # between text deltas
TRANSCRIBE_S = 0.2  # before the first delta of a transcription
CALL_PIECE = 12  # characters of a function call's arguments per delta


class Job(Protocol):
    """Something that sends events over time."""

    def steps(self) -> Iterator[float]:
        """Yield when the next events are due, in seconds since the start."""


@dataclass(slots=True)
class _Open:
    """The item that is being sent."""

    item: Item
    index: int
    kind: Literal["text", "audio", "call"]
    sent: str = ""


class Response:
    """One answer.

    Args:
        session: whose it is.
        request: what was asked for.
        given: items to answer instead of the conversation; ``None``: the conversation.
        forced: text to say verbatim instead of an answer (xAI's ``force_message``).
    """

    def __init__(
        self, session: Session, request: ResponseRequest, *, given: Sequence[Item] | None = None, forced: str | None = None
    ) -> None:
        self.id = session.naming.new("resp")
        self.request = request
        self.status: Status = "in_progress"
        self._session = session
        self._forced = forced
        self._items: list[Item] = []
        self._details: Json | None = None
        self._usage: Json | None = None
        # Only set between an item's added and done events.
        self._open: _Open | None = None
        self._produced = Tokens()
        self._context, self._cached = session.count_context(request, given)
        item, said = mind.last_said(session.conversation if given is None else given, session.behaviour.heard)
        self._calls = [] if forced is not None else mind.calls(request.effective.tools, request.effective.tool_choice, item, said)
        fixed = session.behaviour.reply if forced is None else forced
        self._text = mind.reply(item, said, name=session.behaviour.name if forced is None else "", fixed=fixed)

    @property
    def over(self) -> bool:
        """``response.done`` was sent."""
        return self.status != "in_progress"

    @property
    def effective(self) -> Effective:
        """The configuration it runs under."""
        return self.request.effective

    def begin(self) -> None:
        """Send ``response.created``."""
        self._session.emit("response.created", {"response": self.written()})

    def written(self) -> Json:
        """The response object."""
        told: Json = {
            "object": "realtime.response",
            "id": self.id,
            "status": self.status,
            "status_details": self._details,
            "output": [item.written() for item in self._items],
            "conversation_id": self._session.conversation_id if self.request.in_conversation else None,
            "metadata": self.request.metadata,
        }
        told |= self._session.shape.response_fields(self.effective, self._session.config)
        if self._session.behaviour.usage_in_response:
            told["usage"] = self._usage
        return told

    def steps(self) -> Iterator[float]:
        """See ``Job.steps``."""
        at_s = THINK_S
        yield at_s
        failure = self._session.behaviour.failure
        if failure is not None:
            self._finish("failed", {"type": "failed", "error": dict(failure)})
            return
        for name, arguments in self._calls:
            at_s = yield from self._send_call(name, arguments, at_s)
        whole = True
        if not self._calls:
            whole = yield from self._send_message(at_s)
        if whole:
            self._finish("completed", None)
        else:
            self._finish("incomplete", {"type": "incomplete", "reason": "max_output_tokens"})

    def cancel(self, reason: Literal["client_cancelled", "turn_detected"]) -> None:
        """End it now: close what is open, then ``response.done``. Nothing happens when it is over."""
        if self.over:
            return
        self._close(whole=False)
        self._finish("cancelled", {"type": "cancelled", "reason": reason})

    # --- items ---

    def _begin_item(self, item: Item, kind: Literal["text", "audio", "call"]) -> _Open:
        session = self._session
        item.status = "in_progress"
        opened = self._open = _Open(item, len(self._items), kind)
        self._items.append(item)
        session.emit("response.output_item.added", {"response_id": self.id, "output_index": opened.index, "item": item.written()})
        if self.request.in_conversation:
            session.conversation.add(item)
            session.emit_item_added(item)
        return opened

    def _place(self, opened: _Open) -> Json:
        return {"response_id": self.id, "item_id": opened.item.id, "output_index": opened.index}

    def _send_message(self, at_s: float) -> Generator[float, None, bool]:
        """Send one message; false when the limit of output tokens cut it off."""
        kind: Literal["text", "audio"] = self.effective.modality
        opened = self._begin_item(Item(id=self._session.naming.new("item"), role="assistant"), kind)
        field = "text" if kind == "text" else "transcript"
        part_type = self._session.shape.text_part if kind == "text" else self._session.shape.audio_part
        opened.item.content = [{"type": part_type, field: ""}]
        part = {"content_index": 0, "part": {"type": kind, field: ""}}
        self._session.emit("response.content_part.added", self._place(opened) | part)
        if kind == "text":
            whole = yield from self._send_text(opened, at_s)
        else:
            whole = yield from self._send_speech(opened, at_s)
        self._close(whole=whole)
        return whole

    def _send_text(self, opened: _Open, at_s: float) -> Generator[float, None, bool]:
        limit = self.effective.max_output_tokens
        place = self._place(opened) | {"content_index": 0}
        for index, word in enumerate(split_words(self._text)):
            yield at_s + index * TEXT_STEP_S
            if limit is not None and text_tokens(opened.sent + word) > limit:
                return False
            opened.sent += word
            self._session.emit("response.output_text.delta", place | {"delta": word})
        return True

    def _send_speech(self, opened: _Open, at_s: float) -> Generator[float, None, bool]:
        session, limit = self._session, self.effective.max_output_tokens
        speech = session.bank.speech(self._text, self.effective.output_format)
        opened.item.speech = speech
        opened.item.heard_until_ms = 0
        duration_ms = speech.duration_ms
        place = self._place(opened) | {"content_index": 0}
        for index in range(len(speech.pieces)):
            yield at_s + index * PIECE_MS / 1000
            due = speech.words[index]
            tokens = text_tokens(opened.sent + "".join(due)) + int((index + 1) * PIECE_MS * OUTPUT_TOKENS_PER_S / 1000)
            if limit is not None and tokens > limit:
                return False
            for word in due:
                opened.sent += word
                session.emit("response.output_audio_transcript.delta", place | {"delta": word})
            self._send_piece(opened, speech, index)
            opened.item.heard_until_ms = min((index + 1) * PIECE_MS, duration_ms)
        return True

    def _send_piece(self, opened: _Open, speech: Speech, index: int) -> None:
        session = self._session
        session.spoken = True
        if self.effective.binary_output:
            session.host.send_binary(speech.piece(index))
            return
        # Put together by hand: this is nearly all that a loaded simulator sends, and the base64 is the same for every session.
        name = session.shape.event("response.output_audio.delta")
        head = (
            f'{{"type":"{name}","event_id":"{session.naming.new("event")}","response_id":"{self.id}",'
            f'"item_id":"{opened.item.id}","output_index":{opened.index},"content_index":0,"delta":"'
        )
        session.host.send(name, b"".join((head.encode(), speech.pieces[index], b'"}')))

    def _send_call(self, name: str, arguments: str, at_s: float) -> Generator[float, None, float]:
        naming = self._session.naming
        item = Item(id=naming.new("item"), kind="function_call", name=name, call_id=naming.new("call"))
        opened = self._begin_item(item, "call")
        place = self._place(opened) | {"call_id": opened.item.call_id}
        for start in range(0, len(arguments), CALL_PIECE):
            yield at_s
            at_s += TEXT_STEP_S
            piece = arguments[start : start + CALL_PIECE]
            opened.sent += piece
            self._session.emit("response.function_call_arguments.delta", place | {"delta": piece})
        self._close(whole=True)
        return at_s

    def _close(self, *, whole: bool) -> None:
        """Send the ``done`` events of the item that is open, if one is."""
        opened, self._open = self._open, None
        if opened is None:
            return
        session, item, place = self._session, opened.item, self._place(opened)
        item.status = "completed" if whole else "incomplete"
        if opened.kind == "call":
            item.arguments = opened.sent
            self._produced.text += text_tokens(item.name + opened.sent)
            done = place | {"call_id": item.call_id, "arguments": opened.sent}
            if session.shape.names_function:
                done["name"] = item.name
            session.emit("response.function_call_arguments.done", done)
        else:
            self._close_part(opened, place | {"content_index": 0})
        if self.request.in_conversation:
            session.emit_item_done(item)
        session.emit("response.output_item.done", {"response_id": self.id, "output_index": opened.index, "item": item.written()})

    def _close_part(self, opened: _Open, place: Json) -> None:
        session, item = self._session, opened.item
        self._produced.text += text_tokens(opened.sent)
        field = "text" if opened.kind == "text" else "transcript"
        # A client may have truncated the item while it was being sent, which also settled its transcript.
        if item.content[0][field] is not None:
            item.content[0][field] = opened.sent
        if opened.kind == "text":
            session.emit("response.output_text.done", place | {"text": opened.sent})
        else:
            self._produced.audio += int(item.spoken_ms * OUTPUT_TOKENS_PER_S / 1000)
            session.emit("response.output_audio.done", place)
            session.emit("response.output_audio_transcript.done", place | {"transcript": opened.sent})
        session.emit("response.content_part.done", place | {"part": {"type": opened.kind, field: opened.sent}})

    # --- the end ---

    def _finish(self, status: Status, details: Json | None) -> None:
        session = self._session
        self.status = status
        self._details = details
        self._usage = self._count_usage()
        session.meter.spend(self._context.total + self._produced.total)
        session.emit("rate_limits.updated", {"rate_limits": session.meter.written()})
        done: Json = {"response": self.written()}
        if session.behaviour.usage_beside_response:
            done["usage"] = self._usage
        session.response_over(self)
        session.emit("response.done", done)

    def _count_usage(self) -> Json:
        context, cached, produced = self._context, self._cached, self._produced
        details: Json = {
            "text_tokens": context.text,
            "audio_tokens": context.audio,
            "cached_tokens": cached.total,
        }
        if self._session.shape.detailed_usage:
            details["image_tokens"] = context.image
            details["cached_tokens_details"] = {
                "text_tokens": cached.text,
                "audio_tokens": cached.audio,
                "image_tokens": cached.image,
            }
        return {
            "total_tokens": context.total + produced.total,
            "input_tokens": context.total,
            "output_tokens": produced.total,
            "input_token_details": details,
            "output_token_details": {"text_tokens": produced.text, "audio_tokens": produced.audio},
        }


class Transcription:
    """The user's speech as text.

    Args:
        session: whose it is.
        item: the committed turn.
        model: the transcription model; ``whisper`` models bill by duration, the others by tokens.
    """

    def __init__(self, session: Session, item: Item, *, model: str) -> None:
        self._session = session
        self._item = item
        self._model = model
        self._text = mind.transcript_of(item, session.behaviour.heard)

    def steps(self) -> Iterator[float]:
        """See ``Job.steps``."""
        session = self._session
        place = {"item_id": self._item.id, "content_index": 0}
        said = ""
        for index, word in enumerate(split_words(self._text)):
            yield TRANSCRIBE_S + index * TEXT_STEP_S
            said += word
            if session.shape.cumulative_transcription:
                session.emit("conversation.item.input_audio_transcription.updated", place | {"transcript": said})
            else:
                session.emit("conversation.item.input_audio_transcription.delta", place | {"delta": word})
        self._item.content[0]["transcript"] = self._text
        completed = place | {"transcript": self._text, "usage": self._count_usage()}
        session.emit("conversation.item.input_audio_transcription.completed", completed)

    def _count_usage(self) -> Json:
        if "whisper" in self._model:
            return {"type": "duration", "seconds": round(self._item.heard_ms / 1000, 3)}
        heard = int(self._item.heard_ms * INPUT_TOKENS_PER_S / 1000)
        written = text_tokens(self._text)
        return {
            "type": "tokens",
            "total_tokens": heard + written,
            "input_tokens": heard,
            "output_tokens": written,
            "input_token_details": {"text_tokens": 0, "audio_tokens": heard},
        }
