"""The voice, G.711, and the level of sound."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.simulator.audio import (
    MAX_SPEECH_MS,
    PCM_24K,
    PCMA,
    PCMU,
    PIECE_MS,
    AudioBank,
    AudioFormat,
    encode_samples,
    level,
    split_words,
)
from tests.unit.simulator.host import silence, tone

FORMATS = [PCM_24K, PCMU, PCMA, AudioFormat("pcm", 8_000), AudioFormat("pcm", 48_000)]


@pytest.mark.parametrize("audio_format", FORMATS)
def test_speech_is_deterministic_whole_and_audible(audio_format: AudioFormat) -> None:
    """The same text gives the same sound; its pieces are all of it, each a tenth of a second, in base64."""
    first, second = (AudioBank().speech("good morning, dear caller", audio_format) for _ in range(2))
    assert first == second
    assert b"".join(map(base64.b64decode, first.pieces)) == first.sound
    size = round(PIECE_MS * audio_format.bytes_per_ms)
    assert all(len(base64.b64decode(piece)) == size for piece in first.pieces[:-1])
    assert b"".join(first.piece(index) for index in range(len(first.pieces))) == first.sound
    assert level(first.sound, audio_format) > 0.03
    assert len(first.words) == len(first.pieces)
    assert "".join(word for due in first.words for word in due) == first.text


def test_speech_lasts_the_same_in_every_format() -> None:
    """A text's length does not depend on how its samples are written."""
    bank = AudioBank()
    assert {bank.speech("one two three", audio_format).duration_ms for audio_format in FORMATS} == {580}


def test_different_texts_sound_different() -> None:
    """Pitch and length come from the words."""
    bank = AudioBank()
    assert len({bank.speech(text, PCM_24K).sound for text in ("yes", "no", "perhaps", "yes yes")}) == 4


def test_bank_keeps_what_is_used_and_forgets_the_rest() -> None:
    """The same speech is the same object while it is kept; the bound holds, and one that is too large is still made."""
    bank = AudioBank(max_bytes=300_000)
    kept = bank.speech("kept", PCM_24K)
    for number in range(50):
        assert bank.speech("kept", PCM_24K) is kept
        bank.speech(f"another {number}", PCM_24K)
        assert bank._bytes <= 300_000
    assert AudioBank(max_bytes=1).speech("large", PCM_24K).sound


def test_endless_text_has_bounded_sound_and_its_whole_transcript() -> None:
    """The sound of a long text is cut off; its transcript is not."""
    text = "word " * 3_000
    speech = AudioBank().speech(text, PCMU)
    assert MAX_SPEECH_MS <= speech.duration_ms < MAX_SPEECH_MS + 1_000
    assert "".join(word for due in speech.words for word in due) == text


def test_no_text_has_no_sound() -> None:
    """An empty answer has no pieces."""
    speech = AudioBank().speech("", PCM_24K)
    assert (speech.sound, speech.pieces, speech.words, speech.duration_ms) == (b"", (), (), 0)


@given(st.text())
def test_words_add_up_to_the_text(text: str) -> None:
    """Deltas of a transcript concatenate to it, whatever it is, and none is empty."""
    words = split_words(text)
    assert "".join(words) == text
    assert all(words)


@pytest.mark.parametrize(
    ("audio_format", "codes"),
    [
        # Values of ITU-T G.711 tables 1a and 2a, scaled to 16 bits.
        (PCMU, {0: 0xFF, -1: 0x7F, 32_767: 0x80, -32_768: 0x00, 1_000: 0xCE, -1_000: 0x4E}),
        (PCMA, {0: 0xD5, -1: 0x55, 32_767: 0xAA, -32_768: 0x2A, 1_000: 0xFA, -1_000: 0x7A}),
    ],
)
def test_g711_codes(audio_format: AudioFormat, codes: dict[int, int]) -> None:
    """Known samples have the standard's codes."""
    assert {sample: encode_samples([sample], audio_format)[0] for sample in codes} == codes


@pytest.mark.parametrize("audio_format", FORMATS)
@pytest.mark.parametrize("hertz", [200, 440, 1_000])
def test_level_tells_sound_from_silence(audio_format: AudioFormat, hertz: float) -> None:
    """The mean amplitude of a sine is 2/π of its peak, in every encoding; silence has none."""
    assert level(tone(0.5, audio_format, hertz=hertz, loudness=0.5), audio_format) == pytest.approx(0.318, abs=0.02)
    assert level(silence(0.5, audio_format), audio_format) < 0.001
    assert level(b"", audio_format) == 0
