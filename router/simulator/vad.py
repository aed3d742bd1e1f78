"""Server VAD on energy: where speech begins and ends in the appended sound. Time is the sound's own, not the clock's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from router.simulator.audio import AudioFormat, level

WINDOW_MS = 20
# This many loud windows in a row are speech; a click is shorter.
ONSET_WINDOWS = 3
# A threshold of 0.5, the default, stands for this mean amplitude: -34 dB, above room noise and below quiet speech.
LEVEL_AT_HALF = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnDetection:
    """Effective settings of turn detection.

    Attributes:
        threshold: 0 to 1; semantic VAD uses 0.5.
        prefix_padding_ms: sound before the onset that belongs to the turn.
        silence_ms: silence that ends a turn.
        create_response: the end of a turn starts an answer.
        interrupt_response: the start of a turn cancels the answer that runs.
    """

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_ms: int = 500
    create_response: bool = True
    interrupt_response: bool = True


@dataclass(frozen=True, slots=True)
class Edge:
    """A boundary of speech, in milliseconds of sound since the session began."""

    kind: Literal["started", "stopped"]
    at_ms: int


class TurnDetector:
    """Finds speech in a stream of appended bytes.

    Args:
        settings: of the detection.
        audio_format: of the bytes.
        at_ms: sound that came before this detector's first byte.
    """

    def __init__(self, settings: TurnDetection, audio_format: AudioFormat, *, at_ms: float = 0.0) -> None:
        self.settings = settings
        self.audio_format = audio_format
        self._origin_ms = at_ms
        self._window = max(round(WINDOW_MS * audio_format.bytes_per_ms), 1)
        self._limit = LEVEL_AT_HALF * max(settings.threshold, 0.01) / 0.5
        self._silent_windows = max(settings.silence_ms // WINDOW_MS, 1)
        # Less than a window, waiting for the rest.
        self._tail = b""
        self._windows = 0
        # Loud windows in a row while silent, silent ones in a row while speaking.
        self._run = 0
        self._speaking = False

    @property
    def speaking(self) -> bool:
        """Speech began and has not ended."""
        return self._speaking

    def reset(self) -> None:
        """Forget a turn under way: its sound was committed or cleared by the client."""
        self._run = 0
        self._speaking = False

    def feed(self, data: bytes) -> Iterator[Edge]:
        """Take the next bytes and yield the edges in them, in order. It must be exhausted."""
        data = self._tail + data
        whole = len(data) - len(data) % self._window
        self._tail = data[whole:]
        for at in range(0, whole, self._window):
            loud = level(data[at : at + self._window], self.audio_format) >= self._limit
            self._windows += 1
            edge = self._step(loud)
            if edge is not None:
                yield edge

    def _step(self, loud: bool) -> Edge | None:
        if loud == self._speaking:
            self._run = 0
            return None
        self._run += 1
        now_ms = self._origin_ms + self._windows * WINDOW_MS
        if not self._speaking and self._run >= ONSET_WINDOWS:
            self._run = 0
            self._speaking = True
            onset_ms = now_ms - ONSET_WINDOWS * WINDOW_MS - self.settings.prefix_padding_ms
            return Edge("started", max(int(onset_ms), 0))
        if self._speaking and self._run >= self._silent_windows:
            self._run = 0
            self._speaking = False
            return Edge("stopped", int(now_ms))
        return None
