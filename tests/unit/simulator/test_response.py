"""When the steps of an answer are due; what they send is in ``test_session``."""

from __future__ import annotations

import pytest

from router.simulator.audio import PIECE_MS
from router.simulator.response import TEXT_STEP_S, THINK_S
from tests.unit.simulator.host import Driver


def due_times(driver: Driver) -> list[float]:
    """The due times of the one job that runs."""
    (steps,) = driver.host.jobs.values()
    return list(steps)


def test_speech_is_due_in_real_time() -> None:
    """After thinking, one piece each tenth of a second: an answer takes as long as it sounds."""
    driver = Driver(reply="one two three four")
    driver.send("response.create")
    times = due_times(driver)
    assert times[0] == THINK_S
    assert times[1:] == pytest.approx([THINK_S + index * PIECE_MS / 1000 for index in range(len(times) - 1)])
    speech = driver.session.bank.speech("one two three four", driver.session._effective.output_format)
    assert len(times) - 1 == len(speech.pieces)


def test_text_is_due_word_by_word() -> None:
    """Text comes at the speed of a fast reader."""
    driver = Driver(reply="one two three four")
    driver.send("response.create", response={"output_modalities": ["text"]})
    assert due_times(driver)[1:] == pytest.approx([THINK_S + index * TEXT_STEP_S for index in range(4)])


def test_due_times_never_fall_back() -> None:
    """Several function calls follow each other in time."""
    driver = Driver()
    tools = [{"type": "function", "name": name} for name in ("first_tool", "second_tool")]
    driver.send("session.update", session={"type": "realtime", "tools": tools})
    driver.say("first_tool and second_tool")
    driver.send("response.create")
    times = due_times(driver)
    assert times == sorted(times)
    assert len(times) >= 3
