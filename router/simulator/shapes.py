"""What a dialect calls things: the session object and its merge rules, names of events and content, accepted fields.

``Ga`` is OpenAI's present form, ``Beta`` the retired one that Azure's preview path and many compatible servers still speak,
``Xai`` is GA's events with a flatter, tolerant session object.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from router.simulator.audio import PCM_24K, PCMA, PCMU, AudioFormat
from router.simulator.schema import (
    Check,
    EventError,
    Json,
    anything,
    boolean,
    choice,
    either,
    integer,
    list_of,
    missing,
    nullable,
    number,
    record,
    string_map,
    text,
    wrong,
)
from router.simulator.vad import TurnDetection

Modality = Literal["text", "audio"]

MAX_OUTPUT_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """What the engine needs of a session's configuration, whatever the dialect writes.

    Attributes:
        modality: what answers are given in.
        voice: as configured; a name or ``{"id": …}``.
        input_format: of appended sound.
        output_format: of answers.
        turn_detection: ``None`` is off.
        transcription_model: transcribes the user's speech; ``None`` is off.
        max_output_tokens: ``None`` is no limit.
        binary_input: sound comes as binary messages (xAI).
        binary_output: sound goes as binary messages (xAI).
        temperature: of the beta shape; echoed.
    """

    modality: Modality = "audio"
    voice: Any = None
    input_format: AudioFormat = PCM_24K
    output_format: AudioFormat = PCM_24K
    turn_detection: TurnDetection | None = None
    transcription_model: str | None = None
    instructions: str = ""
    tools: tuple[Json, ...] = ()
    tool_choice: Any = "auto"
    max_output_tokens: int | None = None
    binary_input: bool = False
    binary_output: bool = False
    temperature: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseRequest:
    """One ``response.create``, read.

    Attributes:
        effective: the session's configuration with this response's own on top.
        in_conversation: its items join the conversation.
        metadata: echoed.
        input: what to answer instead of the conversation, as the client wrote it; ``None``: the conversation.
    """

    effective: Effective
    in_conversation: bool = True
    metadata: dict[str, str] | None = None
    input: list[Any] | None = None


# --- checks that the shapes share ----------------------------------------------------------------

_TOOL_CHOICE: Check = either(
    choice("auto", "none", "required"),
    record({"type": choice("function", "mcp"), "name": text(), "server_label": text()}, required=("type",)),
    expected="auto, none, required or an object",
)
_MAX_TOKENS: Check = either(
    choice("inf"), integer(1, MAX_OUTPUT_TOKENS), expected=f"'inf' or an integer from 1 to {MAX_OUTPUT_TOKENS}"
)
_VOICE: Check = either(text(), record({"id": text()}, required=("id",)), expected="a string or an object with an id")
_TRACING: Check = nullable(
    either(
        choice("auto"),
        record({"workflow_name": text(), "group_id": text(), "metadata": anything}),
        expected="null, 'auto' or an object",
    )
)
_PROMPT: Check = nullable(record({"id": text(), "version": nullable(text()), "variables": anything}, required=("id",)))
_REASONING: Check = nullable(record({"effort": nullable(choice("none", "minimal", "low", "medium", "high", "xhigh"))}))
_NOISE: Check = nullable(record({"type": choice("near_field", "far_field"), "strength": number(0, 1)}))
_TURN_DETECTION_FIELDS: Mapping[str, Check] = {
    "type": choice("server_vad", "semantic_vad"),
    "threshold": number(0, 1),
    "prefix_padding_ms": integer(0, 60_000),
    "silence_duration_ms": integer(0, 60_000),
    "idle_timeout_ms": nullable(integer(0, 3_600_000)),
    "eagerness": choice("low", "medium", "high", "auto"),
    "create_response": boolean,
    "interrupt_response": boolean,
}
_TRANSCRIPTION_FIELDS: Mapping[str, Check] = {
    "model": text(),
    "language": nullable(text()),
    "languages": list_of(text()),
    "prompt": nullable(text()),
    "keywords": list_of(text()),
    "delay": nullable(choice("minimal", "low", "medium", "high", "xhigh")),
}
_INPUT_ITEMS: Check = nullable(list_of(anything))

_SERVER_VAD: Mapping[str, Any] = MappingProxyType(
    {
        "type": "server_vad",
        "threshold": 0.5,
        "prefix_padding_ms": 300,
        "silence_duration_ms": 500,
        "idle_timeout_ms": None,
        "create_response": True,
        "interrupt_response": True,
    }
)
_SEMANTIC_VAD: Mapping[str, Any] = MappingProxyType(
    {"type": "semantic_vad", "eagerness": "auto", "create_response": True, "interrupt_response": True}
)
_EAGERNESS_MS: Mapping[str, int] = MappingProxyType({"low": 1200, "medium": 600, "auto": 600, "high": 300})


def _function_tool(*, tolerant: bool) -> Check:
    function = record(
        {"type": choice("function"), "name": text(max_length=64), "description": nullable(text()), "parameters": anything},
        required=("name",),
        tolerant=tolerant,
    )

    def check(value: Any, path: str) -> Json:
        if isinstance(value, dict) and value.get("type") not in (None, "function"):
            if value["type"] == "mcp" or tolerant:
                return value  # accepted and echoed; this provider has no MCP servers and searches nothing
            raise wrong(f"{path}.type", "one of function, mcp", value["type"])
        kept: Json = function(value, path)
        return {"type": "function"} | kept

    return check


def _turn_detection(patch: Json | None, base: Json | None, *, semantic: bool = True, idle: bool = True) -> Json | None:
    """Merge turn detection: ``null`` turns it off; fields present change; another type starts from its own defaults."""
    if patch is None:
        return None
    kind = patch.get("type") or (base["type"] if base else "server_vad")
    if kind == "semantic_vad" and not semantic:
        raise wrong("session.turn_detection.type", "server_vad", kind)
    defaults = dict(_SERVER_VAD if kind == "server_vad" else _SEMANTIC_VAD)
    if not idle:
        defaults.pop("idle_timeout_ms", None)
    start = base if base is not None and base["type"] == kind else defaults
    # Fields of the other type are dropped, as the effective configuration shows only those in force.
    return start | {name: value for name, value in patch.items() if name in defaults}


def _detection(config: Json | None, *, answers: bool = True) -> TurnDetection | None:
    if config is None:
        return None
    create = bool(config.get("create_response", True)) and answers
    interrupt = bool(config.get("interrupt_response", True))
    if config["type"] == "semantic_vad":
        silence_ms = _EAGERNESS_MS[config.get("eagerness", "auto")]
        return TurnDetection(silence_ms=silence_ms, create_response=create, interrupt_response=interrupt)
    return TurnDetection(
        threshold=config.get("threshold", 0.5),
        prefix_padding_ms=config.get("prefix_padding_ms", 300),
        silence_ms=config.get("silence_duration_ms", 500),
        create_response=create,
        interrupt_response=interrupt,
    )


def _limit(value: Any) -> int | None:
    return value if isinstance(value, int) else None


# --- the shapes ----------------------------------------------------------------------------------


class Shape(ABC):
    """A dialect's forms. Stateless; a session's configuration is the JSON object that the dialect echoes."""

    name: ClassVar[str]
    # GA event name → this dialect's; absent: the same.
    renamed: ClassVar[Mapping[str, str]] = MappingProxyType({})
    text_part: ClassVar[str] = "output_text"
    audio_part: ClassVar[str] = "output_audio"
    # conversation.item.added and .done; without: one conversation.item.created.
    two_step_items: ClassVar[bool] = True
    # Transcription deltas, or the cumulative ``…transcription.updated``.
    cumulative_transcription: ClassVar[bool] = False
    # Details of usage that came with GA.
    detailed_usage: ClassVar[bool] = True
    # function_call_arguments.done has the function's name.
    names_function: ClassVar[bool] = True
    # Conversation event: before the session's, after it, or not at all.
    conversation_created: ClassVar[Literal["first", "second", "never"]] = "never"
    session_object: ClassVar[str] = "realtime.session"

    def event(self, ga_name: str) -> str:
        """What this dialect calls an event."""
        return self.renamed.get(ga_name, ga_name)

    @abstractmethod
    def defaults(self, *, model: str | None, transcription: bool) -> Json:
        """The configuration of a new session."""

    @abstractmethod
    def merged(self, config: Json, patch: Any, *, spoken: bool) -> Json:
        """Return the configuration with a ``session.update`` applied.

        Args:
            config: what is in force; not changed.
            patch: ``session`` of the event, unchecked.
            spoken: the model has answered with sound, so its voice is settled.

        Raises:
            EventError: the update is refused as a whole.
        """

    @abstractmethod
    def effective(self, config: Json) -> Effective:
        """Read a configuration."""

    @abstractmethod
    def request(self, config: Json, params: Any) -> ResponseRequest:
        """Read ``response`` of a ``response.create``, ``None`` when it had none.

        Raises:
            EventError: it is refused.
        """

    @abstractmethod
    def response_fields(self, effective: Effective, config: Json) -> Json:
        """The part of a response object that repeats the configuration."""


def _check_model(patch: Json, config: Json) -> None:
    """The model is settled by the URL; clients repeat it in ``session.update`` and may only repeat it."""
    model = patch.get("model")
    if model is not None and model != config.get("model"):
        raise EventError(
            "invalid_value",
            f"Invalid value: 'session.model': found {model!r}, but the model of a session cannot be changed.",
            param="session.model",
        )


def _check_voice(new: Any, old: Any, *, spoken: bool, param: str) -> None:
    if spoken and new is not None and new != old:
        problem = "Cannot update a conversation's voice if assistant audio is present."
        raise EventError("cannot_update_voice", problem, param=param)


def _ga_format(value: Any, path: str) -> Json:
    kept: Json = record(
        {"type": choice("audio/pcm", "audio/pcmu", "audio/pcma"), "rate": integer(24_000, 24_000)}, required=("type",)
    )(value, path)
    return kept | ({"rate": 24_000} if kept["type"] == "audio/pcm" else {})


def _read_format(config: Json) -> AudioFormat:
    if config["type"] == "audio/pcmu":
        return PCMU
    if config["type"] == "audio/pcma":
        return PCMA
    return AudioFormat("pcm", config.get("rate", 24_000))


class Ga(Shape):
    """OpenAI's GA protocol."""

    name = "ga"

    _input: ClassVar[Mapping[str, Check]] = {
        "format": _ga_format,
        "transcription": nullable(record(_TRANSCRIPTION_FIELDS)),
        "noise_reduction": _NOISE,
        "turn_detection": nullable(record(_TURN_DETECTION_FIELDS)),
    }
    _output: ClassVar[Mapping[str, Check]] = {"format": _ga_format, "voice": _VOICE, "speed": number(0.25, 1.5)}
    _session = staticmethod(
        record(
            {
                "type": choice("realtime"),
                "model": text(),
                "instructions": text(),
                "output_modalities": list_of(choice("text", "audio"), longest=2),
                "audio": record({"input": record(_input), "output": record(_output)}),
                "tools": list_of(_function_tool(tolerant=False)),
                "tool_choice": _TOOL_CHOICE,
                "parallel_tool_calls": nullable(boolean),
                "max_output_tokens": _MAX_TOKENS,
                "truncation": either(
                    choice("auto", "disabled"),
                    record(
                        {
                            "type": choice("retention_ratio"),
                            "retention_ratio": number(0, 1),
                            "token_limits": record({"post_instructions": integer(0, 10_000_000)}),
                        },
                        required=("type", "retention_ratio"),
                    ),
                    expected="auto, disabled or an object",
                ),
                "tracing": _TRACING,
                "prompt": _PROMPT,
                "reasoning": _REASONING,
                "include": nullable(list_of(choice("item.input_audio_transcription.logprobs"))),
            }
        )
    )
    _transcription_session = staticmethod(
        record(
            {
                "type": choice("transcription"),
                "audio": record({"input": record(_input)}),
                "include": nullable(list_of(choice("item.input_audio_transcription.logprobs"))),
            }
        )
    )
    _response = staticmethod(
        record(
            {
                "conversation": choice("auto", "none"),
                "metadata": nullable(string_map),
                "input": _INPUT_ITEMS,
                "instructions": text(),
                "output_modalities": list_of(choice("text", "audio"), longest=2),
                "audio": record({"output": record({"format": _ga_format, "voice": _VOICE})}),
                "tools": list_of(_function_tool(tolerant=False)),
                "tool_choice": _TOOL_CHOICE,
                "parallel_tool_calls": nullable(boolean),
                "max_output_tokens": _MAX_TOKENS,
                "prompt": _PROMPT,
                "reasoning": _REASONING,
            }
        )
    )

    def defaults(self, *, model: str | None, transcription: bool) -> Json:
        """See ``Shape.defaults``."""
        sound: Json = {
            "format": {"type": "audio/pcm", "rate": 24_000},
            "transcription": None,
            "noise_reduction": None,
            "turn_detection": dict(_SERVER_VAD),
        }
        if transcription:
            return {
                "type": "transcription",
                "object": "realtime.transcription_session",
                "include": None,
                "audio": {"input": sound},
            }
        return {
            "type": "realtime",
            "object": self.session_object,
            "model": model,
            "output_modalities": ["audio"],
            "instructions": "You are a simulated assistant.",
            "tools": [],
            "tool_choice": "auto",
            "max_output_tokens": "inf",
            "tracing": None,
            "prompt": None,
            "truncation": "auto",
            "include": None,
            "audio": {
                "input": sound,
                "output": {"format": {"type": "audio/pcm", "rate": 24_000}, "voice": "marin", "speed": 1.0},
            },
        }

    def merged(self, config: Json, patch: Any, *, spoken: bool) -> Json:
        """See ``Shape.merged``."""
        if not isinstance(patch, dict):
            raise wrong("session", "an object", patch)
        if "type" not in patch:
            raise missing("session.type")
        check = self._transcription_session if config["type"] == "transcription" else self._session
        kept = check(patch, "session")
        _check_model(kept, config)
        _check_modalities(kept.get("output_modalities"), "session.output_modalities")
        new = copy.deepcopy(config)
        audio = kept.pop("audio", {})
        new.update(kept)
        incoming, outgoing = audio.get("input", {}), audio.get("output", {})
        if "turn_detection" in incoming:
            incoming["turn_detection"] = _turn_detection(incoming["turn_detection"], new["audio"]["input"]["turn_detection"])
        new["audio"]["input"].update(incoming)
        if outgoing:
            _check_voice(
                outgoing.get("voice"), new["audio"]["output"]["voice"], spoken=spoken, param="session.audio.output.voice"
            )
            new["audio"]["output"].update(outgoing)
        return new

    def effective(self, config: Json) -> Effective:
        """See ``Shape.effective``."""
        sound = config["audio"]["input"]
        heard = Effective(
            input_format=_read_format(sound["format"]),
            turn_detection=_detection(sound["turn_detection"], answers=config["type"] == "realtime"),
            transcription_model=sound["transcription"].get("model", "gpt-4o-transcribe") if sound["transcription"] else None,
        )
        if config["type"] == "transcription":
            return replace(heard, transcription_model=heard.transcription_model or "gpt-4o-transcribe")
        output = config["audio"]["output"]
        return replace(
            heard,
            modality="audio" if "audio" in config["output_modalities"] else "text",
            voice=output["voice"],
            output_format=_read_format(output["format"]),
            instructions=config["instructions"],
            tools=tuple(config["tools"]),
            tool_choice=config["tool_choice"],
            max_output_tokens=_limit(config["max_output_tokens"]),
        )

    def request(self, config: Json, params: Any) -> ResponseRequest:
        """See ``Shape.request``."""
        kept = self._response({} if params is None else params, "response")
        _check_modalities(kept.get("output_modalities"), "response.output_modalities")
        effective = _overridden(self.effective(config), kept)
        output = kept.get("audio", {}).get("output", {})
        if "output_modalities" in kept:
            effective = replace(effective, modality="audio" if "audio" in kept["output_modalities"] else "text")
        if "format" in output:
            effective = replace(effective, output_format=_read_format(output["format"]))
        if "voice" in output:
            effective = replace(effective, voice=output["voice"])
        return _as_request(effective, kept)

    def response_fields(self, effective: Effective, config: Json) -> Json:
        """See ``Shape.response_fields``."""
        voice = effective.voice.get("id") if isinstance(effective.voice, dict) else effective.voice
        written = _write_format(effective.output_format)
        return {
            "output_modalities": [effective.modality],
            "max_output_tokens": effective.max_output_tokens or "inf",
            "audio": {"output": {"format": written, "voice": voice}},
        }


def _check_modalities(found: list[str] | None, param: str) -> None:
    if found is not None and len(found) != 1:
        problem = f"Invalid modalities: {found}. Supported combinations are: ['text'] and ['audio']."
        raise EventError("invalid_value", problem, param=param)


def _write_format(audio_format: AudioFormat) -> Json:
    if audio_format.encoding == "pcm":
        return {"type": "audio/pcm", "rate": audio_format.rate}
    return {"type": f"audio/{audio_format.encoding}"}


def _overridden(effective: Effective, kept: Json) -> Effective:
    """Apply what ``response.create`` calls the same in every shape."""
    changes: Json = {}
    for name in ("instructions", "tool_choice"):
        if name in kept:
            changes[name] = kept[name]
    if "tools" in kept:
        changes["tools"] = tuple(kept["tools"])
    for name in ("max_output_tokens", "max_response_output_tokens"):
        if name in kept:
            changes["max_output_tokens"] = _limit(kept[name])
    return replace(effective, **changes)


def _as_request(effective: Effective, kept: Json) -> ResponseRequest:
    return ResponseRequest(
        effective=effective,
        in_conversation=kept.get("conversation", "auto") != "none",
        metadata=kept.get("metadata"),
        input=kept.get("input"),
    )


class Beta(Shape):
    """The protocol before GA: flat session, other names of events and content."""

    name = "beta"
    renamed = MappingProxyType(
        {
            "response.output_text.delta": "response.text.delta",
            "response.output_text.done": "response.text.done",
            "response.output_audio.delta": "response.audio.delta",
            "response.output_audio.done": "response.audio.done",
            "response.output_audio_transcript.delta": "response.audio_transcript.delta",
            "response.output_audio_transcript.done": "response.audio_transcript.done",
            "conversation.item.added": "conversation.item.created",
        }
    )
    text_part = "text"
    audio_part = "audio"
    two_step_items = False
    detailed_usage = False
    names_function = False
    conversation_created = "second"

    _format = staticmethod(choice("pcm16", "g711_ulaw", "g711_alaw"))
    _input: ClassVar[Mapping[str, Check]] = {
        "input_audio_format": _format,
        "input_audio_transcription": nullable(record(_TRANSCRIPTION_FIELDS)),
        "input_audio_noise_reduction": _NOISE,
        "turn_detection": nullable(record(_TURN_DETECTION_FIELDS)),
    }
    _session = staticmethod(
        record(
            {
                **_input,
                "model": text(),
                "modalities": list_of(choice("text", "audio"), longest=2),
                "instructions": text(),
                "voice": text(),
                "output_audio_format": _format,
                "tools": list_of(_function_tool(tolerant=False)),
                "tool_choice": _TOOL_CHOICE,
                "temperature": number(0.6, 1.2),
                "max_response_output_tokens": _MAX_TOKENS,
                "speed": number(0.25, 1.5),
                "tracing": _TRACING,
            }
        )
    )
    _transcription_session = staticmethod(
        record({**_input, "include": nullable(list_of(text())), "modalities": list_of(choice("text", "audio"))})
    )
    _response = staticmethod(
        record(
            {
                "conversation": choice("auto", "none"),
                "metadata": nullable(string_map),
                "input": _INPUT_ITEMS,
                "modalities": list_of(choice("text", "audio"), longest=2),
                "instructions": text(),
                "voice": text(),
                "output_audio_format": _format,
                "tools": list_of(_function_tool(tolerant=False)),
                "tool_choice": _TOOL_CHOICE,
                "temperature": number(0.6, 1.2),
                "max_output_tokens": _MAX_TOKENS,
                "max_response_output_tokens": _MAX_TOKENS,
            }
        )
    )

    def defaults(self, *, model: str | None, transcription: bool) -> Json:
        """See ``Shape.defaults``."""
        detection = {name: value for name, value in _SERVER_VAD.items() if name != "idle_timeout_ms"}
        sound: Json = {
            "turn_detection": detection,
            "input_audio_format": "pcm16",
            "input_audio_transcription": None,
            "input_audio_noise_reduction": None,
        }
        if transcription:
            return {"object": "realtime.transcription_session", "client_secret": None} | sound
        return {
            "object": self.session_object,
            "model": model,
            "modalities": ["text", "audio"],
            "instructions": "You are a simulated assistant.",
            "voice": "alloy",
            "output_audio_format": "pcm16",
            "tools": [],
            "tool_choice": "auto",
            "temperature": 0.8,
            "max_response_output_tokens": "inf",
            "speed": 1.0,
            "tracing": None,
        } | sound

    def merged(self, config: Json, patch: Any, *, spoken: bool) -> Json:
        """See ``Shape.merged``."""
        transcription = config["object"] == "realtime.transcription_session"
        kept = (self._transcription_session if transcription else self._session)(patch, "session")
        _check_model(kept, config)
        _check_beta_modalities(kept.get("modalities"), "session.modalities")
        _check_voice(kept.get("voice"), config.get("voice"), spoken=spoken, param="session.voice")
        if "turn_detection" in kept:
            kept["turn_detection"] = _turn_detection(kept["turn_detection"], config["turn_detection"], idle=False)
        new = copy.deepcopy(config)
        new.update(kept)
        return new

    def effective(self, config: Json) -> Effective:
        """See ``Shape.effective``."""
        transcription = config["input_audio_transcription"]
        answers = config["object"] == self.session_object
        heard = Effective(
            input_format=_BETA_FORMATS[config["input_audio_format"]],
            turn_detection=_detection(config["turn_detection"], answers=answers),
            transcription_model=transcription.get("model", "whisper-1") if transcription else None,
        )
        if not answers:
            return replace(heard, transcription_model=heard.transcription_model or "whisper-1")
        return replace(
            heard,
            modality="audio" if "audio" in config["modalities"] else "text",
            voice=config["voice"],
            output_format=_BETA_FORMATS[config["output_audio_format"]],
            instructions=config["instructions"],
            tools=tuple(config["tools"]),
            tool_choice=config["tool_choice"],
            max_output_tokens=_limit(config["max_response_output_tokens"]),
            temperature=config["temperature"],
        )

    def request(self, config: Json, params: Any) -> ResponseRequest:
        """See ``Shape.request``."""
        kept = self._response({} if params is None else params, "response")
        _check_beta_modalities(kept.get("modalities"), "response.modalities")
        effective = _overridden(self.effective(config), kept)
        if "modalities" in kept:
            effective = replace(effective, modality="audio" if "audio" in kept["modalities"] else "text")
        if "output_audio_format" in kept:
            effective = replace(effective, output_format=_BETA_FORMATS[kept["output_audio_format"]])
        for name in ("voice", "temperature"):
            if name in kept:
                effective = replace(effective, **{name: kept[name]})
        return _as_request(effective, kept)

    def response_fields(self, effective: Effective, config: Json) -> Json:
        """See ``Shape.response_fields``."""
        formats = {audio_format: name for name, audio_format in _BETA_FORMATS.items()}
        return {
            "modalities": ["text", "audio"] if effective.modality == "audio" else ["text"],
            "voice": effective.voice,
            "output_audio_format": formats[effective.output_format],
            "temperature": effective.temperature,
            "max_output_tokens": effective.max_output_tokens or "inf",
        }


_BETA_FORMATS: Mapping[str, AudioFormat] = MappingProxyType({"pcm16": PCM_24K, "g711_ulaw": PCMU, "g711_alaw": PCMA})


def _check_beta_modalities(found: list[str] | None, param: str) -> None:
    if found is not None and sorted(found) not in (["text"], ["audio", "text"]):
        problem = f"Invalid modalities: {found}. Supported combinations are: ['text'] and ['audio', 'text']."
        raise EventError("invalid_value", problem, param=param)


def _xai_format(value: Any, path: str) -> Json:
    kept: Json = record(
        {"type": choice("audio/pcm", "audio/pcmu", "audio/pcma"), "rate": integer(8_000, 48_000)},
        required=("type",),
        tolerant=True,
    )(value, path)
    if kept["type"] == "audio/pcm":
        return {"rate": 24_000} | kept
    kept.pop("rate", None)
    return kept


class Xai(Shape):
    """xAI's Grok Voice: GA's events, voice and turn detection at the top of the session, unknown fields tolerated."""

    name = "xai"
    cumulative_transcription = True
    conversation_created = "first"

    _transport = staticmethod(choice("json", "binary"))
    _session = staticmethod(
        record(
            {
                "model": text(),
                "instructions": text(),
                "voice": text(max_length=256),
                "turn_detection": nullable(record(_TURN_DETECTION_FIELDS, tolerant=True)),
                "audio": record(
                    {
                        "input": record(
                            {
                                "format": _xai_format,
                                "transport": _transport,
                                "transcription": nullable(
                                    record({"model": text(), "language_hint": text(), "keyterms": list_of(text())}, tolerant=True)
                                ),
                            },
                            tolerant=True,
                        ),
                        "output": record(
                            {"format": _xai_format, "transport": _transport, "speed": number(0.25, 4)}, tolerant=True
                        ),
                    },
                    tolerant=True,
                ),
                "tools": list_of(_function_tool(tolerant=True)),
                "tool_choice": _TOOL_CHOICE,
                "reasoning": record({"effort": choice("high", "none")}, tolerant=True),
                "replace": anything,
                "resumption": record({"enabled": boolean}, tolerant=True),
            },
            tolerant=True,
        )
    )
    _response = staticmethod(
        record(
            {
                "conversation": choice("auto", "none"),
                "metadata": nullable(string_map),
                "input": _INPUT_ITEMS,
                "instructions": text(),
                "modalities": list_of(choice("text", "audio")),
                "output_modalities": list_of(choice("text", "audio")),
            },
            tolerant=True,
        )
    )

    def defaults(self, *, model: str | None, transcription: bool) -> Json:
        """See ``Shape.defaults``; xAI knows no transcription sessions."""
        del transcription
        sound = {"format": {"type": "audio/pcm", "rate": 24_000}, "transport": "json"}
        return {
            "object": self.session_object,
            "model": model,
            "voice": "ara",
            "instructions": "You are a simulated assistant.",
            "turn_detection": {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 500},
            "tools": [],
            "audio": {"input": dict(sound), "output": dict(sound)},
        }

    def merged(self, config: Json, patch: Any, *, spoken: bool) -> Json:
        """See ``Shape.merged``."""
        kept = self._session(patch, "session")
        _check_model(kept, config)
        _check_voice(kept.get("voice"), config["voice"], spoken=spoken, param="session.voice")
        if "turn_detection" in kept:
            kept["turn_detection"] = _turn_detection(kept["turn_detection"], config["turn_detection"], semantic=False)
        new = copy.deepcopy(config)
        audio = kept.pop("audio", {})
        for side in ("input", "output"):
            new["audio"][side].update(audio.get(side, {}))
        new.update(kept)
        return new

    def effective(self, config: Json) -> Effective:
        """See ``Shape.effective``."""
        sound, output = config["audio"]["input"], config["audio"]["output"]
        transcription = sound.get("transcription")
        return Effective(
            voice=config["voice"],
            input_format=_read_format(sound["format"]),
            output_format=_read_format(output["format"]),
            turn_detection=_detection(config["turn_detection"]),
            transcription_model=transcription.get("model", "grok-transcribe") if transcription else None,
            instructions=config["instructions"],
            tools=tuple(config["tools"]),
            tool_choice=config.get("tool_choice", "auto"),
            binary_input=sound["transport"] == "binary",
            binary_output=output["transport"] == "binary",
        )

    def request(self, config: Json, params: Any) -> ResponseRequest:
        """See ``Shape.request``."""
        kept = self._response({} if params is None else params, "response")
        effective = _overridden(self.effective(config), kept)
        modalities = kept.get("output_modalities") or kept.get("modalities")
        if modalities:
            effective = replace(effective, modality="audio" if "audio" in modalities else "text")
        return _as_request(effective, kept)

    def response_fields(self, effective: Effective, config: Json) -> Json:
        """See ``Shape.response_fields``."""
        return {"output_modalities": [effective.modality], "voice": effective.voice}


GA = Ga()
BETA = Beta()
XAI = Xai()
