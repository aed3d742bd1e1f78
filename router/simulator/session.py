"""One session of the simulated provider: client events in, server events out. No sockets, no event loop, no clock.

``Host`` is what it needs from outside: a way to send, to run a job over time, and to close. All handlers run to their end without
waiting, so the state is whole between any two events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol

import orjson

from router.simulator.audio import AudioBank
from router.simulator.items import Conversation, Item, Naming, Tokens, decode_sound, read_item, text_tokens
from router.simulator.response import Job, Response, Transcription
from router.simulator.schema import EventError, Json, missing, text, wrong
from router.simulator.shapes import ResponseRequest, Shape
from router.simulator.vad import Edge, TurnDetector

MAX_APPEND_BYTES = 15 * 1024 * 1024
MIN_COMMIT_MS = 100
CACHE_BLOCK = 64  # providers cache prefixes in blocks of tokens

_EVENT_ID = text(max_length=512)


class Host(Protocol):
    """What a session asks of whoever holds its connection. None of it waits."""

    def send(self, kind: str, payload: bytes) -> None:
        """Send one event; ``kind`` is its type."""

    def send_binary(self, payload: bytes) -> None:
        """Send one binary message."""

    def start(self, job: Job) -> None:
        """Run a job's steps when they are due."""

    def stop(self, job: Job) -> None:
        """Run no more steps of a job."""

    def close(self, code: int, reason: str) -> None:
        """Close the connection behind what was sent."""


class Meter(Protocol):
    """The account's rate limits, shared by all sessions."""

    def spend(self, tokens: int) -> None:
        """Count one request and its tokens."""

    def written(self) -> list[Json]:
        """``rate_limits`` of ``rate_limits.updated``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How the simulated model behaves, beyond the protocol.

    Attributes:
        name: mentioned in answers; empty: not.
        reply: said whatever is asked; ``None``: answers follow from what was said.
        heard: what the user's speech is taken to say; ``None``: its length.
        usage: where ``response.done`` has its usage.
        max_sound: bytes of a turn's sound kept for ``conversation.item.retrieve``.
        failure: ``error`` of a failed answer; set, every answer fails.
    """

    name: str = ""
    reply: str | None = None
    heard: str | None = None
    usage: Literal["response", "beside", "none"] = "response"
    max_sound: int = 1024 * 1024
    failure: Mapping[str, str] | None = None

    @property
    def usage_in_response(self) -> bool:
        """``response.usage`` is there, as OpenAI writes it."""
        return self.usage == "response"

    @property
    def usage_beside_response(self) -> bool:
        """``usage`` stands beside ``response``, as xAI writes it."""
        return self.usage == "beside"


class Session:
    """The protocol's state machine.

    Args:
        shape: the dialect's forms.
        host: the connection.
        naming: gives ids.
        bank: makes sound.
        meter: rate limits.
        behaviour: of the model.
        model: its name, as the URL gave it.
        transcription: a session that only transcribes.
        expires_at: epoch seconds.
        conversation_id: of a resumed conversation; ``None``: a new one.
    """

    def __init__(
        self,
        *,
        shape: Shape,
        host: Host,
        naming: Naming,
        bank: AudioBank,
        meter: Meter,
        behaviour: Behaviour,
        model: str | None,
        transcription: bool,
        expires_at: int,
        conversation_id: str | None = None,
    ) -> None:
        self.shape = shape
        self.host = host
        self.naming = naming
        self.bank = bank
        self.meter = meter
        self.behaviour = behaviour
        self.transcription = transcription
        self.id = naming.new("sess")
        self.conversation_id = conversation_id or naming.new("conv")
        self.conversation = Conversation()
        self.config = shape.defaults(model=model, transcription=transcription)
        # The model has answered with sound: its voice is settled.
        self.spoken = False
        self._expires_at = expires_at
        self._effective = shape.effective(self.config)
        # Answers that run; at most one of them is in the conversation.
        self._responses: dict[str, Response] = {}
        # Context of the last answer: what the next one finds in the cache.
        self._last_context = Tokens()
        # Sound appended and not committed: its length, and its bytes while they are few enough to keep.
        self._buffered_ms = 0.0
        self._buffer: bytearray | None = bytearray()
        # Sound appended since the session began.
        self._total_ms = 0.0
        self._detector = self._new_detector()
        # Only set while the detector hears speech: the item that it will become, and where it began.
        self._turn: tuple[str, int] | None = None
        self._handlers = self._event_handlers()

    # --- beginning and end ---

    def open(self) -> None:
        """Send the first events."""
        conversation = {"conversation": {"id": self.conversation_id, "object": "realtime.conversation"}}
        if self.shape.conversation_created == "first":
            self.emit("conversation.created", conversation)
        beta_transcription = self.transcription and self.shape.name == "beta"
        self.emit("transcription_session.created" if beta_transcription else "session.created", {"session": self.written()})
        if self.shape.conversation_created == "second" and not self.transcription:
            self.emit("conversation.created", conversation)

    def expire(self, minutes: float) -> None:
        """End the session at its longest duration."""
        problem = f"Your session hit the maximum duration of {minutes:g} minutes."
        self.fail(EventError("session_expired", problem))
        self.host.close(1001, problem)

    def written(self) -> Json:
        """The session object: the whole effective configuration."""
        return self.config | {"id": self.id, "expires_at": self._expires_at}

    # --- sending ---

    def emit(self, ga_name: str, fields: Mapping[str, Any]) -> None:
        """Send an event under the dialect's name for it."""
        name = self.shape.event(ga_name)
        self.host.send(name, orjson.dumps({"type": name, "event_id": self.naming.new("event"), **fields}))

    def emit_item_added(self, item: Item) -> None:
        """Tell that an item joined the conversation."""
        self.emit("conversation.item.added", {"previous_item_id": self.conversation.previous_id(item), "item": item.written()})

    def emit_item_done(self, item: Item) -> None:
        """Tell that an item is complete; the beta shape has no such event."""
        if self.shape.two_step_items:
            self.emit("conversation.item.done", {"previous_item_id": self.conversation.previous_id(item), "item": item.written()})

    def fail(self, error: EventError, *, event_id: str | None = None) -> None:
        """Send an ``error`` event."""
        told = {"type": error.kind, "code": error.code, "message": error.message, "param": error.param, "event_id": event_id}
        self.emit("error", {"error": told})

    # --- receiving ---

    def receive(self, raw: bytes | str) -> str:
        """Take a text message.

        Returns:
            The event's type if this dialect knows it, else ``other``.
        """
        try:
            event = orjson.loads(raw)
        except orjson.JSONDecodeError:
            self.fail(EventError("invalid_event", "The message is not valid JSON."))
            return "other"
        if not isinstance(event, dict):
            self.fail(EventError("invalid_event", "The message is not a JSON object."))
            return "other"
        event_id = event.get("event_id")
        kind = event.get("type")
        try:
            if event_id is not None:
                _EVENT_ID(event_id, "event_id")
            if kind is None:
                raise EventError("invalid_event", "The 'type' field is missing.", param="type")
            handler = self._handlers.get(kind) if isinstance(kind, str) else None
            if handler is None:
                raise wrong("type", f"one of {', '.join(sorted(self._handlers))}", kind)
            handler(event)
        except EventError as error:
            self.fail(error, event_id=event_id if isinstance(event_id, str) else None)
        except (RecursionError, orjson.JSONEncodeError):
            problem = EventError("invalid_value", "The event is nested too deeply.")
            self.fail(problem, event_id=event_id if isinstance(event_id, str) else None)
        return kind if isinstance(kind, str) and kind in self._handlers else "other"

    def receive_binary(self, data: bytes) -> str:
        """Take a binary message: sound where that was agreed on (xAI), an error elsewhere."""
        if self._effective.binary_input:
            self._append(data)
            return "binary"
        self.fail(EventError("invalid_event", "Binary messages are not supported."))
        return "other"

    def _event_handlers(self) -> Mapping[str, Callable[[Json], None]]:
        handlers: dict[str, Callable[[Json], None]] = {
            "session.update": self._on_session_update,
            "input_audio_buffer.append": self._on_append,
            "input_audio_buffer.commit": self._on_commit,
            "input_audio_buffer.clear": self._on_clear,
            "conversation.item.create": self._on_item_create,
            "conversation.item.retrieve": self._on_item_retrieve,
            "conversation.item.truncate": self._on_item_truncate,
            "conversation.item.delete": self._on_item_delete,
            "response.create": self._on_response_create,
            "response.cancel": self._on_response_cancel,
        }
        if self.shape.name == "beta":
            handlers["transcription_session.update"] = self._on_session_update
        if self.shape.name == "xai":
            handlers["conversation.item.commit"] = self._on_commit  # the older name of the buffer's commit
        return MappingProxyType(handlers)

    # --- session ---

    def _on_session_update(self, event: Json) -> None:
        if "session" not in event:
            raise missing("session")
        config = self.shape.merged(self.config, event["session"], spoken=self.spoken)
        # Written once before it is in force: what cannot be echoed must not become the configuration.
        orjson.dumps(config)
        before, self.config = self._effective, config
        self._effective = self.shape.effective(config)
        if (before.turn_detection, before.input_format) != (self._effective.turn_detection, self._effective.input_format):
            self._detector = self._new_detector()
            self._turn = None
        beta_transcription = self.transcription and self.shape.name == "beta"
        self.emit("transcription_session.updated" if beta_transcription else "session.updated", {"session": self.written()})

    # --- input audio ---

    def _new_detector(self) -> TurnDetector | None:
        settings = self._effective.turn_detection
        return None if settings is None else TurnDetector(settings, self._effective.input_format, at_ms=self._total_ms)

    def _on_append(self, event: Json) -> None:
        content = event.get("audio")
        if content is None:
            raise missing("audio")
        if not isinstance(content, str):
            raise wrong("audio", "a base64 string", content)
        if len(content) > MAX_APPEND_BYTES * 4 // 3 + 4:
            problem = f"Invalid 'audio': expected at most {MAX_APPEND_BYTES} bytes of audio."
            raise EventError("string_above_max_length", problem, param="audio")
        self._append(decode_sound(content, "audio"))

    def _append(self, sound: bytes) -> None:
        length_ms = self._effective.input_format.duration_ms(len(sound))
        self._buffered_ms += length_ms
        self._total_ms += length_ms
        if self._buffer is not None:
            self._buffer += sound
            if len(self._buffer) > self.behaviour.max_sound:
                self._buffer = None  # too long to keep: from here on only its length is known
        detector = self._detector
        if detector is None:
            return
        for edge in detector.feed(sound):
            self._on_edge(edge)
        if self._turn is None:
            self._forget_silence(detector.settings.prefix_padding_ms)

    def _forget_silence(self, keep_ms: int) -> None:
        """Keep only the padding before a turn that has not begun: silence is not the user's turn."""
        size = round(keep_ms * self._effective.input_format.bytes_per_ms)
        if self._buffer is None:
            self._buffer = bytearray()
        elif len(self._buffer) > size:
            whole = self._effective.input_format.sample_bytes
            del self._buffer[: (len(self._buffer) - size) // whole * whole]

    def _on_edge(self, edge: Edge) -> None:
        settings = self._effective.turn_detection
        if settings is None:
            return
        if edge.kind == "started":
            self._turn = (self.naming.new("item"), edge.at_ms)
            self.emit("input_audio_buffer.speech_started", {"audio_start_ms": edge.at_ms, "item_id": self._turn[0]})
            active = self._active
            if settings.interrupt_response and active is not None:
                self._cancel(active, "turn_detected")
            return
        if self._turn is None:
            return  # the turn was committed or cleared by the client
        item_id, start_ms = self._turn
        self.emit("input_audio_buffer.speech_stopped", {"audio_end_ms": edge.at_ms, "item_id": item_id})
        self._commit(item_id, float(edge.at_ms - start_ms))
        if not settings.create_response:
            return
        if self._active is not None:
            self.fail(_already_active(self._active))
            return
        self._respond(ResponseRequest(effective=self._effective))

    def _on_commit(self, event: Json) -> None:
        del event
        if self._buffered_ms < MIN_COMMIT_MS:
            problem = (
                f"Error committing input audio buffer: buffer too small. Expected at least {MIN_COMMIT_MS}ms of audio, "
                f"but buffer only has {self._buffered_ms:.2f}ms of audio."
            )
            raise EventError("input_audio_buffer_commit_empty", problem)
        self._commit(self._turn[0] if self._turn else self.naming.new("item"), self._buffered_ms)

    def _commit(self, item_id: str, heard_ms: float) -> None:
        item = Item(id=item_id, role="user", content=[{"type": "input_audio", "transcript": None}], heard_ms=heard_ms)
        item.sound_format = self._effective.input_format
        item.sound = bytes(self._buffer) if self._buffer is not None else None
        self._empty_buffer()
        # The client may have taken the id that was announced with speech_started for an item of its own.
        if self.conversation.get(item.id) is not None:
            item.id = self.naming.new("item")
        self.conversation.add(item)
        previous_id = self.conversation.previous_id(item)
        self.emit("input_audio_buffer.committed", {"previous_item_id": previous_id, "item_id": item.id})
        self.emit_item_added(item)
        self.emit_item_done(item)
        model = self._effective.transcription_model
        if model is not None:
            self.host.start(Transcription(self, item, model=model))

    def _on_clear(self, event: Json) -> None:
        del event
        self._empty_buffer()
        self.emit("input_audio_buffer.cleared", {})

    def _empty_buffer(self) -> None:
        self._buffer = bytearray()
        self._buffered_ms = 0.0
        self._turn = None
        if self._detector is not None:
            self._detector.reset()

    # --- items ---

    def _read_item(self, value: Any, path: str) -> Item:
        return read_item(
            value,
            shape=self.shape,
            naming=self.naming,
            sound_format=self._effective.input_format,
            max_sound=self.behaviour.max_sound,
            path=path,
        )

    def _on_item_create(self, event: Json) -> None:
        value = event.get("item")
        if self.shape.name == "xai" and isinstance(value, dict) and value.get("type") == "force_message":
            self._say(value)
            return
        item = self._read_item(value, "item")
        if item.kind == "function_call_output" and not self.conversation.knows_call(item.call_id):
            problem = f"Tool call ID '{item.call_id}' not found in conversation."
            raise EventError("invalid_tool_call_id", problem, param="item.call_id")
        after = event.get("previous_item_id")
        if after is not None and not isinstance(after, str):
            raise wrong("previous_item_id", "a string", after)
        self.conversation.add(item, after=after)
        self.emit_item_added(item)
        self.emit_item_done(item)

    def _say(self, value: Json) -> None:
        """xAI's ``force_message``: an answer whose words the client chose."""
        content = value.get("content")
        parts = content if isinstance(content, list) else [value]
        words = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
        if not words:
            raise missing("item.content[0].text")
        if self._active is not None:
            raise _already_active(self._active)
        self._respond(ResponseRequest(effective=self._effective), forced=" ".join(words))

    def _find(self, event: Json, code: str) -> Item:
        item_id = event.get("item_id")
        if item_id is None:
            raise missing("item_id")
        item = self.conversation.get(item_id)
        if item is None:
            shown = item_id[:64] if isinstance(item_id, str) else type(item_id).__name__
            raise EventError(code, f"Item with id '{shown}' does not exist in the conversation.", param="item_id")
        return item

    def _on_item_retrieve(self, event: Json) -> None:
        item = self._find(event, "item_retrieve_invalid_item_id")
        self.emit("conversation.item.retrieved", {"item": item.written(with_sound=True)})

    def _on_item_delete(self, event: Json) -> None:
        item = self._find(event, "item_delete_invalid_item_id")
        self.conversation.remove(item)
        self._last_context = Tokens()  # what followed the item is no longer a known prefix
        self.emit("conversation.item.deleted", {"item_id": item.id})

    def _on_item_truncate(self, event: Json) -> None:
        item = self._find(event, "item_truncate_invalid_item_id")
        if item.speech is None:
            problem = "Only model output audio messages can be truncated."
            raise EventError("item_truncate_invalid_item_id", problem, param="item_id")
        index, end_ms = event.get("content_index"), event.get("audio_end_ms")
        for name, value in (("content_index", index), ("audio_end_ms", end_ms)):
            if value is None:
                raise missing(name)
        if index != 0 or isinstance(index, bool):
            raise wrong("content_index", "0", index)
        if isinstance(end_ms, bool) or not isinstance(end_ms, int) or end_ms < 0:
            raise wrong("audio_end_ms", "an integer of at least 0", end_ms)
        if end_ms > item.spoken_ms:
            problem = f"Audio content of {item.spoken_ms}ms is already shorter than {end_ms}ms."
            raise EventError("invalid_value", problem, param="audio_end_ms")
        item.heard_until_ms = end_ms
        # What was said after the cut is not known word by word, so the whole transcript goes.
        item.content[0]["transcript"] = None
        self._last_context = Tokens()
        self.emit("conversation.item.truncated", {"item_id": item.id, "content_index": 0, "audio_end_ms": end_ms})

    # --- responses ---

    @property
    def _active(self) -> Response | None:
        """The answer in the conversation that runs."""
        return next((response for response in self._responses.values() if response.request.in_conversation), None)

    def _on_response_create(self, event: Json) -> None:
        if self.transcription:
            raise EventError("invalid_value", "Responses cannot be created in a transcription session.", param="type")
        request = self.shape.request(self.config, event.get("response"))
        given = None
        if request.input is not None:
            given = [self._checked_input(entry, index) for index, entry in enumerate(request.input)]
        active = self._active
        if request.in_conversation and active is not None:
            raise _already_active(active)
        self._respond(request, given=given)

    def _checked_input(self, entry: Any, index: int) -> Item:
        path = f"response.input[{index}]"
        if not isinstance(entry, dict) or entry.get("type") != "item_reference":
            return self._read_item(entry, path)
        item = self.conversation.get(entry.get("id"))
        if item is None:
            raise wrong(f"{path}.id", "the id of an item of the conversation", entry.get("id"))
        return item

    def _respond(self, request: ResponseRequest, *, given: Sequence[Item] | None = None, forced: str | None = None) -> None:
        response = Response(self, request, given=given, forced=forced)
        self._responses[response.id] = response
        response.begin()
        self.host.start(response)

    def _on_response_cancel(self, event: Json) -> None:
        response_id = event.get("response_id")
        response = self._active if response_id is None else self._responses.get(str(response_id))
        if response is None:
            raise EventError("response_cancel_not_active", "Cancellation failed: no active response found.")
        self._cancel(response, "client_cancelled")

    def _cancel(self, response: Response, reason: Literal["client_cancelled", "turn_detected"]) -> None:
        self.host.stop(response)
        response.cancel(reason)

    # --- what a response asks of its session ---

    def response_over(self, response: Response) -> None:
        """A response is about to send ``response.done``: the next may begin."""
        self._responses.pop(response.id, None)

    def count_context(self, request: ResponseRequest, given: Sequence[Item] | None) -> tuple[Tokens, Tokens]:
        """Tokens that a response is given, and how many of them are cached: the blocks it shares with the answer before."""
        effective = request.effective
        tools = sum(text_tokens(orjson.dumps(tool).decode()) for tool in effective.tools)
        fixed = Tokens(text=text_tokens(effective.instructions) + tools)
        if given is not None:
            return sum((item.tokens for item in given), fixed), Tokens()
        context = fixed + self.conversation.context()
        if not request.in_conversation:
            return context, Tokens()
        cached = Tokens(
            text=_blocks(min(context.text, self._last_context.text)),
            audio=_blocks(min(context.audio, self._last_context.audio)),
        )
        self._last_context = context
        return context, cached


def _blocks(tokens: int) -> int:
    return tokens // CACHE_BLOCK * CACHE_BLOCK


def _already_active(active: Response) -> EventError:
    problem = f"Conversation already has an active response in progress: {active.id}. Wait until the response is finished."
    return EventError("conversation_already_has_active_response", problem)
