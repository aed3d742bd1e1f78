"""What was said: conversation items, their order, their cost in tokens, and how a client's item is read."""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from router.simulator.audio import AudioFormat, Speech
from router.simulator.schema import EventError, Json, missing, text, wrong
from router.simulator.shapes import Shape

ItemKind = Literal["message", "function_call", "function_call_output"]

# Context kept, newest first: what a 32k model has after its answer. It bounds the memory of a session as well.
MAX_CONTEXT_TOKENS = 28_000
MAX_ITEMS = 5_000

INPUT_TOKENS_PER_S = 10
OUTPUT_TOKENS_PER_S = 20
IMAGE_TOKENS = 258


class Naming:
    """Ids of one session, unique and short: a tag and a counter, so that an event costs no random draw.

    Args:
        tag: what sets this session's ids apart.
    """

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self._count = 0

    def new(self, prefix: str) -> str:
        """Return the next id of a kind, at most 32 characters long for the prefixes in use."""
        self._count += 1
        return f"{prefix}_{self.tag}{self._count:06x}"


@dataclass(slots=True)
class Tokens:
    """Counts by kind."""

    text: int = 0
    audio: int = 0
    image: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.text + other.text, self.audio + other.audio, self.image + other.image)

    @property
    def total(self) -> int:
        """All kinds together."""
        return self.text + self.audio + self.image


def text_tokens(content: str) -> int:
    """Tokens of a text: about four characters each."""
    return (len(content) + 3) // 4


@dataclass(slots=True, kw_only=True)
class Item:
    """One entry of a conversation.

    Attributes:
        content: parts as the dialect writes them, without the bytes of sound.
        heard_ms: length of the user's sound.
        sound: its bytes, where they were kept.
        sound_format: how those are written.
        speech: the assistant's sound.
        heard_until_ms: the assistant's sound ends here (truncated, or not all sent); ``None``: all of it.
    """

    id: str
    kind: ItemKind = "message"
    role: str = ""
    status: Literal["completed", "incomplete", "in_progress"] = "completed"
    content: list[Json] = field(default_factory=list)
    name: str = ""
    call_id: str = ""
    arguments: str = ""
    output: str = ""
    heard_ms: float = 0.0
    sound: bytes | None = None
    sound_format: AudioFormat | None = None
    speech: Speech | None = None
    heard_until_ms: int | None = None

    def written(self, *, with_sound: bool = False) -> Json:
        """The item as an event carries it.

        Args:
            with_sound: include the bytes, as ``conversation.item.retrieved`` does where they are known.
        """
        told: Json = {"id": self.id, "object": "realtime.item", "type": self.kind, "status": self.status}
        if self.kind == "function_call":
            return told | {"name": self.name, "call_id": self.call_id, "arguments": self.arguments}
        if self.kind == "function_call_output":
            return told | {"call_id": self.call_id, "output": self.output}
        content = [dict(part) for part in self.content]
        if with_sound:
            for part in content:
                if part["type"] in ("input_audio", "output_audio", "audio"):
                    part["audio"] = self._sound_base64()
        return told | {"role": self.role, "content": content}

    def _sound_base64(self) -> str | None:
        if self.sound is not None:
            return binascii.b2a_base64(self.sound, newline=False).decode()
        if self.speech is None:
            return None
        until = len(self.speech.sound)
        if self.heard_until_ms is not None:
            whole = self.speech.audio_format.sample_bytes
            until = round(self.heard_until_ms * self.speech.audio_format.bytes_per_ms) // whole * whole
        return binascii.b2a_base64(self.speech.sound[:until], newline=False).decode()

    @property
    def text(self) -> str:
        """All text and transcripts of a message."""
        return " ".join(part[name] for part in self.content for name in ("text", "transcript") if part.get(name))

    @property
    def spoken_ms(self) -> int:
        """Length of the assistant's sound, as far as it counts."""
        if self.speech is None:
            return 0
        return self.speech.duration_ms if self.heard_until_ms is None else self.heard_until_ms

    @property
    def tokens(self) -> Tokens:
        """What the item costs as context."""
        if self.kind != "message":
            return Tokens(text=text_tokens(self.name + self.arguments + self.output))
        audio = int(self.heard_ms * INPUT_TOKENS_PER_S / 1000) + int(self.spoken_ms * OUTPUT_TOKENS_PER_S / 1000)
        images = sum(IMAGE_TOKENS for part in self.content if part["type"] == "input_image")
        # A user's transcript is for the client; the model heard the sound.
        texts = sum(text_tokens(part.get("text") or "") for part in self.content)
        if self.role == "assistant":
            texts += sum(text_tokens(part.get("transcript") or "") for part in self.content)
        return Tokens(text=texts, audio=audio, image=images)


class Conversation:
    """Items in order."""

    def __init__(self) -> None:
        self._order: list[Item] = []
        self._by_id: dict[str, Item] = {}

    def __iter__(self) -> Iterator[Item]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def get(self, item_id: object) -> Item | None:
        """The item of that id, or ``None``."""
        return self._by_id.get(item_id) if isinstance(item_id, str) else None

    def previous_id(self, item: Item) -> str | None:
        """Id of the item before, ``None`` for the first."""
        # From the end: what is asked for was nearly always just added.
        for index in range(len(self._order) - 1, -1, -1):
            if self._order[index] is item:
                return self._order[index - 1].id if index else None
        return None

    def add(self, item: Item, *, after: str | None = None) -> None:
        """Append an item, or insert it.

        Args:
            after: id of the item before it; ``"root"`` puts it first; ``None`` appends.

        Raises:
            EventError: the id is taken, or ``after`` names no item. Nothing was added.
        """
        if item.id in self._by_id:
            problem = f"Error adding item: an item with id '{item.id}' already exists."
            raise EventError("item_create_duplicate_item_id", problem, param="item.id")
        index = len(self._order)
        if after == "root":
            index = 0
        elif after is not None:
            before = self._by_id.get(after)
            if before is None:
                raise wrong("previous_item_id", "the id of an item of the conversation, or 'root'", after)
            index = self._order.index(before) + 1
        self._order.insert(index, item)
        self._by_id[item.id] = item
        if len(self._order) > MAX_ITEMS:
            self.remove(self._order[0])

    def remove(self, item: Item) -> None:
        """Take an item out."""
        self._order.remove(item)
        del self._by_id[item.id]

    def context(self) -> Tokens:
        """Count what the model is given, newest first, and forget what does not fit its context any more."""
        total = Tokens()
        for index in range(len(self._order) - 1, -1, -1):
            grown = total + self._order[index].tokens
            if grown.total > MAX_CONTEXT_TOKENS:
                for item in self._order[: index + 1]:
                    del self._by_id[item.id]
                del self._order[: index + 1]
                break
            total = grown
        return total

    def knows_call(self, call_id: str) -> bool:
        """Whether a function call of that id is in the conversation."""
        return any(item.kind == "function_call" and item.call_id == call_id for item in self._order)


# --- reading a client's item ----------------------------------------------------------------------

_ID = text(max_length=32)
_TEXT = text()


def read_item(value: Any, *, shape: Shape, naming: Naming, sound_format: AudioFormat, max_sound: int, path: str = "item") -> Item:
    """Read ``item`` of a ``conversation.item.create`` or an entry of a response's ``input``.

    Args:
        value: as the client sent it.
        shape: the dialect's forms.
        naming: gives ids to what comes without.
        sound_format: of ``input_audio``.
        max_sound: bytes of sound that are kept; of a longer one only the length is.
        path: place in the event, for errors.

    Raises:
        EventError: it is refused.
    """
    if not isinstance(value, dict):
        raise missing(path) if value is None else wrong(path, "an object", value)
    kind = value.get("type", "message")
    item_id = value.get("id")
    item = Item(id=naming.new("item") if item_id is None else _ID(item_id, f"{path}.id"))
    if kind == "message":
        _read_message(item, value, shape=shape, sound_format=sound_format, max_sound=max_sound, path=path)
        return item
    if kind == "function_call":
        item.kind = "function_call"
        item.name = _required(value, "name", path)
        item.arguments = _required(value, "arguments", path)
        call_id = value.get("call_id")
        item.call_id = naming.new("call") if call_id is None else _ID(call_id, f"{path}.call_id")
        return item
    if kind == "function_call_output":
        item.kind = "function_call_output"
        item.call_id = _required(value, "call_id", path)
        item.output = _required(value, "output", path)
        return item
    raise wrong(f"{path}.type", "one of message, function_call, function_call_output", kind)


def _required(value: Json, name: str, path: str) -> str:
    if value.get(name) is None:
        raise missing(f"{path}.{name}")
    content: str = _TEXT(value[name], f"{path}.{name}")
    return content


def _read_message(item: Item, value: Json, *, shape: Shape, sound_format: AudioFormat, max_sound: int, path: str) -> None:
    role = value.get("role")
    if role is None:
        raise missing(f"{path}.role")
    if role not in ("user", "assistant", "system"):
        raise wrong(f"{path}.role", "one of user, assistant, system", role)
    parts = value.get("content")
    if parts is None:
        raise missing(f"{path}.content")
    if not isinstance(parts, list):
        raise wrong(f"{path}.content", "an array", parts)
    item.role = role
    for index, part in enumerate(parts):
        place = f"{path}.content[{index}]"
        if not isinstance(part, dict):
            raise wrong(place, "an object", part)
        item.content.append(_read_part(item, part, shape=shape, sound_format=sound_format, max_sound=max_sound, path=place))


def _read_part(item: Item, part: Json, *, shape: Shape, sound_format: AudioFormat, max_sound: int, path: str) -> Json:
    kind = part.get("type")
    if kind is None:
        raise missing(f"{path}.type")
    if item.role == "assistant" and kind in (shape.text_part, shape.audio_part):
        # Sound of the assistant cannot be given back; its text can, and an audio part is taken for one that lacks it.
        return {"type": shape.text_part, "text": _required(part, "text", path)}
    if item.role != "assistant" and kind == "input_text":
        return {"type": "input_text", "text": _required(part, "text", path)}
    if item.role == "user" and kind == "input_audio":
        return _read_sound(item, part, sound_format=sound_format, max_sound=max_sound, path=path)
    if item.role == "user" and kind == "input_image" and shape.detailed_usage:
        image = {"type": "input_image", "image_url": _required(part, "image_url", path)}
        return image | ({"detail": part["detail"]} if part.get("detail") in ("auto", "low", "high") else {})
    allowed = {"assistant": shape.text_part, "system": "input_text"}.get(item.role, "one of input_text, input_audio, input_image")
    raise wrong(f"{path}.type", allowed, kind)


def _read_sound(item: Item, part: Json, *, sound_format: AudioFormat, max_sound: int, path: str) -> Json:
    sound = decode_sound(_required(part, "audio", path), f"{path}.audio")
    item.heard_ms += sound_format.duration_ms(len(sound))
    item.sound_format = sound_format
    if len(sound) <= max_sound:
        item.sound = sound
    transcript = part.get("transcript")
    return {"type": "input_audio", "transcript": transcript if isinstance(transcript, str) else None}


def decode_sound(content: str, path: str) -> bytes:
    """Decode base64 strictly.

    Raises:
        EventError: it is not base64.
    """
    try:
        return binascii.a2b_base64(content, strict_mode=True)
    except ValueError:  # binascii.Error among them, and non-ASCII text
        problem = f"Invalid '{path}'. Expected base64-encoded audio bytes, but got an invalid value."
        raise EventError("invalid_value", problem, param=path) from None
