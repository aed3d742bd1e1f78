"""Sound: the formats of the protocol, a speech-like voice that is the same for the same text, and the level of what is heard.

The voice is one tone burst a word, its pitch and length taken from the word, with a short attack and release and a pause
after it. It is cheap because there are few different bursts: each is made once per format, a text is their concatenation,
and a text's base64 pieces are kept, so that a thousand sessions that say the same cost one synthesis.
"""

from __future__ import annotations

import binascii
import math
import sys
import zlib
from array import array
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Encoding = Literal["pcm", "pcmu", "pcma"]

PIECE_MS = 100  # sound per delta: 6,400 characters of base64 at 24 kHz, about what providers send
MAX_SPEECH_MS = 120_000  # a longer text is cut off here

_SYLLABLE_MS = 20  # a word's length is a multiple of this, so that PIECE_MS is one too
_PAUSE_MS = 40
_PITCHES_HZ = tuple(round(130 * 2 ** (step / 12), 2) for step in range(12))  # one octave from a low C


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """How samples are written. ``rate`` is in samples a second; G.711 has 8,000."""

    encoding: Encoding
    rate: int

    @property
    def bytes_per_ms(self) -> float:
        """Bytes that one millisecond takes."""
        return self.rate * self.sample_bytes / 1000

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return 2 if self.encoding == "pcm" else 1

    def duration_ms(self, size: int) -> float:
        """How long ``size`` bytes last."""
        return size / self.bytes_per_ms


PCM_24K = AudioFormat("pcm", 24_000)
PCMU = AudioFormat("pcmu", 8_000)
PCMA = AudioFormat("pcma", 8_000)


# --- G.711 (ITU-T G.711, 1988) -------------------------------------------------------------------


def _mu_law(sample: int) -> int:
    """Encode one 16-bit sample as µ-law."""
    sign = 0x80 if sample < 0 else 0
    magnitude = min(abs(sample), 32_635) + 132
    exponent = magnitude.bit_length() - 8
    mantissa = (magnitude >> (exponent + 3)) & 0x0F
    return ~(sign | exponent << 4 | mantissa) & 0xFF


def _a_law(sample: int) -> int:
    """Encode one 16-bit sample as A-law."""
    sign = 0x80 if sample >= 0 else 0
    magnitude = min(sample if sample >= 0 else ~sample, 32_767)
    if magnitude < 256:
        code = magnitude >> 4
    else:
        exponent = magnitude.bit_length() - 8
        code = exponent << 4 | (magnitude >> (exponent + 3)) & 0x0F
    return (sign | code) ^ 0x55


@lru_cache(maxsize=2)
def _magnitudes(law: Literal["pcmu", "pcma"]) -> tuple[int, ...]:
    """The absolute linear value of each of the 256 codes, by inverting the encoder on a grid finer than its steps."""
    encode = _mu_law if law == "pcmu" else _a_law
    table = [0] * 256
    for sample in range(-32_768, 32_768, 8):
        table[encode(sample)] = abs(sample)
    return tuple(table)


# Only each n-th sample is looked at: speech and silence are orders of magnitude apart, and a simulator under load should spend
# its time elsewhere. The strides are primes, so that no round test tone falls on its own zero crossings.
_STRIDE_PCM = 7
_STRIDE_G711 = 3


def level(data: bytes, audio_format: AudioFormat) -> float:
    """Return the mean absolute amplitude of a piece of sound, 0 (silence) to 1 (full scale), from a sample of it."""
    values: list[int]
    if audio_format.encoding == "pcm":
        samples = array("h", data[: len(data) & ~1])
        if sys.byteorder == "big":
            samples.byteswap()
        values = [abs(sample) for sample in samples[::_STRIDE_PCM]]
    else:
        table = _magnitudes(audio_format.encoding)
        values = [table[code] for code in data[::_STRIDE_G711]]
    return sum(values) / len(values) / 32_768 if values else 0.0


# --- the voice ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """One text as sound.

    Attributes:
        text: what is said.
        audio_format: how.
        sound: all of it.
        pieces: base64 of it, cut every ``PIECE_MS``; all but the last are whole.
        words: for each piece the transcript deltas that are due before it.
    """

    text: str
    audio_format: AudioFormat
    sound: bytes
    pieces: tuple[bytes, ...]
    words: tuple[tuple[str, ...], ...]

    @property
    def duration_ms(self) -> int:
        """Length of the sound."""
        return round(self.audio_format.duration_ms(len(self.sound)))

    def piece(self, index: int) -> bytes:
        """The raw bytes of one piece."""
        size = round(PIECE_MS * self.audio_format.bytes_per_ms)
        return self.sound[index * size : (index + 1) * size]


def split_words(text: str) -> list[str]:
    """Cut a text into the deltas of a transcript: words with the space before them; their concatenation is the text."""
    words: list[str] = []
    start = 0
    while start < len(text):
        # The next space that follows something else than spaces.
        end = start
        while end < len(text) and text[end].isspace():
            end += 1
        while end < len(text) and not text[end].isspace():
            end += 1
        words.append(text[start:end])
        start = end
    return words


class AudioBank:
    """Makes and keeps speech.

    Args:
        max_bytes: bound of what is kept, sound and base64 together; the least recently used goes first.
    """

    def __init__(self, *, max_bytes: int = 32 * 1024 * 1024) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._speeches: OrderedDict[tuple[str, AudioFormat], Speech] = OrderedDict()
        # At most 12 pitches × 20 lengths for each format that was asked for.
        self._bursts: dict[tuple[int, int, AudioFormat], bytes] = {}

    def speech(self, text: str, audio_format: AudioFormat) -> Speech:
        """Return the sound of a text, the same for the same arguments, at most ``MAX_SPEECH_MS`` long."""
        key = (text, audio_format)
        known = self._speeches.get(key)
        if known is not None:
            self._speeches.move_to_end(key)
            return known
        made = self._make(text, audio_format)
        self._speeches[key] = made
        self._bytes += _cost(made)
        while self._bytes > self._max_bytes and len(self._speeches) > 1:
            self._bytes -= _cost(self._speeches.popitem(last=False)[1])
        return made

    def _make(self, text: str, audio_format: AudioFormat) -> Speech:
        bursts: list[bytes] = []
        words: list[tuple[int, str]] = []
        at_ms = 0
        for word in split_words(text):
            words.append((at_ms // PIECE_MS, word))
            if at_ms >= MAX_SPEECH_MS:
                continue  # its transcript comes with the last piece
            length_ms = _SYLLABLE_MS * (4 + min(len(word.strip()), 16))
            bursts.append(self._burst(zlib.crc32(word.strip().lower().encode()) % len(_PITCHES_HZ), length_ms, audio_format))
            at_ms += length_ms + _PAUSE_MS
        sound = b"".join(bursts)
        size = round(PIECE_MS * audio_format.bytes_per_ms)
        pieces = tuple(binascii.b2a_base64(sound[at : at + size], newline=False) for at in range(0, len(sound), size))
        due: list[list[str]] = [[] for _ in pieces]
        for piece, word in words:
            due[min(piece, len(pieces) - 1)].append(word)
        return Speech(
            text=text,
            audio_format=audio_format,
            sound=sound,
            pieces=pieces,
            words=tuple(map(tuple, due)),
        )

    def _burst(self, pitch: int, length_ms: int, audio_format: AudioFormat) -> bytes:
        key = (pitch, length_ms, audio_format)
        known = self._bursts.get(key)
        if known is None:
            known = self._bursts[key] = _tone(_PITCHES_HZ[pitch], length_ms, audio_format)
        return known


def _cost(speech: Speech) -> int:
    return len(speech.sound) + sum(map(len, speech.pieces))


def _tone(pitch_hz: float, length_ms: int, audio_format: AudioFormat) -> bytes:
    """A voiced burst (a pitch with two overtones under a soft envelope), then a pause."""
    rate = audio_format.rate
    count = rate * length_ms // 1000
    ramp = max(rate * _SYLLABLE_MS // 1000, 1)
    turn = 2 * math.pi * pitch_hz / rate
    samples: list[int] = []
    for index in range(count):
        envelope = min(index, count - index, ramp) / ramp
        angle = turn * index
        wave = math.sin(angle) + 0.5 * math.sin(2 * angle) + 0.25 * math.sin(3 * angle)
        samples.append(int(7_000 * envelope * wave))
    samples.extend([0] * (rate * _PAUSE_MS // 1000))
    return encode_samples(samples, audio_format)


def encode_samples(samples: list[int], audio_format: AudioFormat) -> bytes:
    """Write linear 16-bit samples (at the format's rate) in a format."""
    if audio_format.encoding == "pcm":
        pcm = array("h", samples)
        if sys.byteorder == "big":
            pcm.byteswap()
        return pcm.tobytes()
    encode = _mu_law if audio_format.encoding == "pcmu" else _a_law
    return bytes(encode(sample) for sample in samples)
