"""A session without a connection: events are kept, jobs run when the test says so."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from router.simulator.audio import PCM_24K, AudioBank, AudioFormat, encode_samples
from router.simulator.items import Naming
from router.simulator.response import Job
from router.simulator.session import Behaviour, Session
from router.simulator.shapes import BETA, GA, XAI, Shape
from router.simulator.stats import RateMeter
from tests.unit.simulator.openai_events import check_beta, check_ga

Event = dict[str, Any]

CHECKS: dict[str, Callable[[Event], None]] = {GA.name: check_ga, BETA.name: check_beta, XAI.name: lambda event: None}


class RecordingHost:
    """Keeps what a session sends; every event is checked as it comes."""

    def __init__(self, check: Callable[[Event], None]) -> None:
        self.events: list[Event] = []
        self.binary: list[bytes] = []
        self.closed: tuple[int, str] | None = None
        self.jobs: dict[Job, Iterator[float]] = {}
        self._check = check

    def send(self, kind: str, payload: bytes) -> None:
        event = orjson.loads(payload)
        assert event["type"] == kind
        self._check(event)
        self.events.append(event)

    def send_binary(self, payload: bytes) -> None:
        self.binary.append(payload)

    def start(self, job: Job) -> None:
        self.jobs[job] = job.steps()

    def stop(self, job: Job) -> None:
        self.jobs.pop(job, None)

    def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)


class Driver:
    """A session with its host, and short ways to talk to it."""

    def __init__(
        self, shape: Shape = GA, *, transcription: bool = False, model: str | None = "voice-1", **behaviour: Any
    ) -> None:
        self.host = RecordingHost(CHECKS[shape.name])
        self.session = Session(
            shape=shape,
            host=self.host,
            naming=Naming("test"),
            bank=AudioBank(),
            meter=RateMeter(clock=lambda: 0.0),
            behaviour=Behaviour(**behaviour),
            model=None if transcription else model,
            transcription=transcription,
            expires_at=2_000_000_000,
        )
        self.session.open()
        self._read = 0

    def send(self, kind: str, **fields: Any) -> list[Event]:
        """Send one client event and return what came at once."""
        self.new()
        self.session.receive(orjson.dumps({"type": kind, **fields}))
        return self.new()

    def new(self) -> list[Event]:
        """Events since the last call."""
        fresh = self.host.events[self._read :]
        self._read = len(self.host.events)
        return fresh

    def steps(self, count: int) -> list[Event]:
        """Run the first steps of every job, round robin."""
        for _ in range(count):
            for job, steps in list(self.host.jobs.items()):
                try:
                    next(steps)
                except StopIteration:
                    self.host.jobs.pop(job, None)
        return self.new()

    def run(self) -> list[Event]:
        """Run all jobs to their end."""
        events: list[Event] = []
        for _ in range(5_000):
            if not self.host.jobs:
                return events
            events += self.steps(1)
        raise AssertionError("a job does not end")

    def say(self, words: str, **item: Any) -> list[Event]:
        """Add a user's text."""
        message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": words}]}
        return self.send("conversation.item.create", item=message | item)

    def ask(self, **response: Any) -> list[Event]:
        """Ask for an answer and run it."""
        events = self.send("response.create", response=response) if response else self.send("response.create")
        return events + self.run()

    def append(self, sound: bytes) -> list[Event]:
        """Append sound."""
        return self.send("input_audio_buffer.append", audio=base64.b64encode(sound).decode())


def kinds(events: list[Event]) -> list[str]:
    """The events' types, a run of equal ones written once."""
    found: list[str] = []
    for event in events:
        if not found or found[-1] != event["type"]:
            found.append(event["type"])
    return found


def error_of(events: list[Event]) -> Event:
    """The error of the only event, which must be one."""
    assert [event["type"] for event in events] == ["error"], kinds(events)
    error: Event = events[0]["error"]
    return error


def tone(seconds: float, audio_format: AudioFormat = PCM_24K, *, hertz: float = 440, loudness: float = 0.3) -> bytes:
    """A sine."""
    count = int(audio_format.rate * seconds)
    top = loudness * 32_767
    turn = 2 * math.pi * hertz / audio_format.rate
    return encode_samples([int(top * math.sin(turn * index)) for index in range(count)], audio_format)


def silence(seconds: float, audio_format: AudioFormat = PCM_24K) -> bytes:
    """Nothing to hear."""
    return encode_samples([0] * int(audio_format.rate * seconds), audio_format)
