"""Edges of speech."""

from __future__ import annotations

import pytest

from router.simulator.audio import PCM_24K, PCMU, AudioFormat
from router.simulator.vad import Edge, TurnDetection, TurnDetector
from tests.unit.simulator.host import silence, tone


def edges(
    sound: bytes, *, settings: TurnDetection | None = None, audio_format: AudioFormat = PCM_24K, cut: int = 10**9
) -> list[Edge]:
    """The edges found in a sound that is fed in cuts of some bytes."""
    detector = TurnDetector(settings or TurnDetection(), audio_format)
    return [edge for at in range(0, len(sound), cut) for edge in detector.feed(sound[at : at + cut])]


@pytest.mark.parametrize("audio_format", [PCM_24K, PCMU])
@pytest.mark.parametrize("cut", [1, 333, 10**9])
def test_edges_do_not_depend_on_how_sound_is_cut(audio_format: AudioFormat, cut: int) -> None:
    """One second of tone between silences is one turn, found at the same times for any cut."""
    sound = silence(1, audio_format) + tone(1, audio_format) + silence(1, audio_format)
    assert edges(sound, audio_format=audio_format, cut=cut) == [Edge("started", 700), Edge("stopped", 2500)]


def test_settings_move_the_edges() -> None:
    """Padding and silence are what the settings say; the padding does not reach before the beginning."""
    sound = silence(0.1) + tone(1) + silence(1)
    settings = TurnDetection(prefix_padding_ms=400, silence_ms=200)
    assert edges(sound, settings=settings) == [Edge("started", 0), Edge("stopped", 1300)]


def test_a_click_is_no_speech_and_a_breath_no_end() -> None:
    """Less than three loud windows start nothing; less silence than set ends nothing."""
    assert edges(silence(0.2) + tone(0.04) + silence(0.6)) == []
    assert [edge.kind for edge in edges(tone(0.5) + silence(0.4) + tone(0.5))] == ["started"]


def test_threshold_decides_what_is_loud() -> None:
    """A quiet tone is speech at a low threshold and none at a high one."""
    quiet = tone(0.5, loudness=0.04)
    assert [edge.kind for edge in edges(quiet, settings=TurnDetection(threshold=0.3))] == ["started"]
    assert edges(quiet, settings=TurnDetection(threshold=0.9)) == []


def test_reset_forgets_a_turn() -> None:
    """After a reset the same speech starts anew, later on the clock of the sound."""
    detector = TurnDetector(TurnDetection(prefix_padding_ms=0), PCM_24K, at_ms=5_000)
    assert [edge.at_ms for edge in detector.feed(tone(0.5))] == [5_000]
    assert detector.speaking
    detector.reset()
    assert not detector.speaking
    assert [edge.at_ms for edge in detector.feed(tone(0.5))] == [5_500]
