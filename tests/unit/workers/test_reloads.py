"""The parent's side of a reload: what it asks of which worker, and what comes of their answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from router.config import load
from router.events import Event, Observers, Reloaded
from router.reload import Origin, Source
from router.watch import MOST_UNSETTLED_S
from router.workers.channel import Message
from router.workers.reloads import COMMIT_S, LOOK_S, PREPARE_S, Newest, Reloads
from tests.helpers.clock import ManualClock
from tests.helpers.running import config_of

BASE = "http://127.0.0.1:9/v1"
PROBLEM = {"file": "f", "line": 2, "path": "a", "found": "x", "expected": "y", "hint": "", "text": "f:2: a: found x, expected y"}
GOOD: Mapping[str, Any] = {
    "warnings": [],
    "restart_needed": ["general_settings.listen"],
    "added": ["b"],
    "changed": [],
    "removed": ["a"],
    "files": [],
    "watch": True,
    "secrets": {"/run/secrets/key": "sk-found"},
}
BAD: Mapping[str, Any] = {"errors": [PROBLEM], "warnings": [], "files": []}


class Parent:
    """A parent of workers that are names."""

    def __init__(self, folder: Path, *workers: str) -> None:
        self.path = folder / "config.yaml"
        self.write("one")
        self.clock = ManualClock()
        self.events: list[Event] = []
        self.accepted: list[Mapping[str, Any]] = []
        self.workers = list(workers)
        self.sent: list[tuple[str, str, Any]] = []
        source = Source.of(str(self.path))
        self.reloads: Reloads[str] = Reloads(
            Origin(source=source, loaded=load(self.path, environ={})),
            workers=lambda: list(self.workers),
            send=self._send,
            accepted=self.accepted.append,
            tell=Observers([self.events.append]),
            clock=self.clock,
        )
        for worker in workers:
            self.reloads.forked(worker)

    def write(self, alias: str) -> str:
        """Write a legal file with an alias; return its text."""
        text = json.dumps(config_of(BASE, router={"model_group_alias": {alias: "voice"}}))
        self.path.write_text(text, encoding="utf-8")
        return text

    def _send(self, worker: str, message: Message) -> None:
        self.sent.append((worker, str(message["what"]), message))

    def told(self, what: str) -> list[str]:
        """Workers that were told something, since the last time."""
        found = [worker for worker, said, _ in self.sent if said == what]
        self.sent = [one for one in self.sent if one[1] != what]
        return found

    @property
    def reloaded(self) -> Reloaded:
        """The last reload."""
        return [event for event in self.events if isinstance(event, Reloaded)][-1]

    def answer(self, data: Mapping[str, Any], *workers: str, number: int = 1) -> None:
        """Let workers answer."""
        for worker in workers:
            self.reloads.heard(worker, number, data)
        self.reloads.step()

    def request(self, trigger: str, answer: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        """Want a reload."""
        self.reloads.request(trigger, answer)
        assert self.reloads.due_at() <= self.clock() or self.told_any
        self.reloads.step()

    @property
    def told_any(self) -> bool:
        """Whether anybody was told anything."""
        return bool(self.sent)

    def pass_time(self, seconds: float) -> None:
        """Let time pass in small steps."""
        for _ in range(round(seconds / LOOK_S) + 1):
            self.clock.advance(LOOK_S)
            self.reloads.step()


def test_all_prepare_and_then_all_put_it_in_force(tmp_path: Path) -> None:
    """Nobody goes ahead of the others; whoever asked hears of it; the next worker begins with it."""
    parent = Parent(tmp_path, "w0", "w1")
    text = parent.write("two")
    answers: list[Mapping[str, Any]] = []
    parent.request("api", answers.append)
    assert parent.told("prepare") == ["w0", "w1"]
    parent.answer(GOOD, "w0")
    assert parent.sent == [] and answers == []
    parent.answer(GOOD, "w1")
    assert parent.told("commit") == ["w0", "w1"] and answers == []
    parent.answer({}, "w0", "w1")
    assert parent.reloads.newest == Newest(text=text, generation=2, secrets=GOOD["secrets"]) and parent.accepted == [GOOD]
    assert (answers[0]["generation"], answers[0]["restart_needed"]) == (2, ["general_settings.listen"])
    event = parent.reloaded
    assert (event.trigger, event.generation, event.added, event.removed, event.errors) == ("api", 2, ("b",), ("a",), ())
    assert parent.reloads.counts == {("success", "start"): 1, ("success", "api"): 1}


def test_what_one_refuses_is_in_force_nowhere(tmp_path: Path) -> None:
    """At once, with its errors; the others forget what they have prepared."""
    parent = Parent(tmp_path, "w0", "w1", "w2")
    parent.request("signal")
    parent.answer(GOOD, "w0")
    parent.answer(BAD, "w1")
    assert parent.told("commit") == [] and parent.told("refuse") == ["w0", "w1", "w2"]
    assert parent.reloads.newest is None and parent.reloads.generation == 1
    assert [problem.line for problem in parent.reloaded.errors] == [2]
    (error,) = parent.reloads.describe()["last_reload"]["errors"]
    assert error["text"] == PROBLEM["text"]
    assert parent.reloads.counts[("failure", "signal")] == 1
    parent.answer(GOOD, "w2")
    assert parent.reloads.generation == 1


def test_a_silent_worker_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    """It is told what is in force, for when it wakes."""
    parent = Parent(tmp_path, "w0", "w1")
    parent.request("signal")
    parent.answer(GOOD, "w0")
    parent.clock.advance(PREPARE_S)
    assert parent.reloads.due_at() <= parent.clock()
    parent.reloads.step()
    assert (parent.told("commit"), parent.told("load")) == (["w0"], ["w1"])
    assert parent.events == []
    # Nor is one that falls silent between the two steps.
    parent.clock.advance(COMMIT_S)
    parent.reloads.step()
    assert parent.reloaded.generation == 2


def test_without_any_answer_nothing_changes(tmp_path: Path) -> None:
    """All hang, or there is none."""
    for workers in (("w0",), ()):
        parent = Parent(tmp_path, *workers)
        parent.request("signal")
        parent.clock.advance(PREPARE_S)
        parent.reloads.step()
        assert "no worker" in str(parent.reloaded.errors[0]) and parent.reloads.generation == 1


def test_a_worker_that_dies_meanwhile_holds_nobody_up(tmp_path: Path) -> None:
    """Its replacement was forked before, and is told when it serves."""
    parent = Parent(tmp_path, "w0", "w1")
    parent.request("signal")
    parent.answer(GOOD, "w0")
    parent.workers.remove("w1")
    parent.reloads.gone("w1")
    parent.reloads.forked("w2")
    parent.reloads.step()
    assert parent.told("commit") == ["w0"] and parent.told("load") == []
    parent.workers.append("w2")
    parent.reloads.serves("w2")
    assert parent.told("load") == ["w2"]
    parent.reloads.forked("w3")
    parent.reloads.serves("w3")
    assert parent.told("load") == []


def test_requests_that_come_meanwhile_are_one_reload_more(tmp_path: Path) -> None:
    """What is being read may be older than what they mean; each hears of one that began after it asked."""
    parent = Parent(tmp_path, "w0")
    answers: list[int] = []
    for trigger in ("signal", "api", "api"):
        parent.request(trigger, lambda document: answers.append(document["generation"]))
    parent.answer(GOOD, "w0")
    parent.answer({}, "w0")
    assert parent.told("prepare") == ["w0", "w0"] and answers == [2]
    parent.answer(GOOD, "w0", number=2)
    parent.answer({}, "w0", number=2)
    assert parent.told("prepare") == [] and answers == [2, 3, 3]


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_asks_nobody(tmp_path: Path, content: bytes | None) -> None:
    """Gone, or no text: the parent says so itself."""
    parent = Parent(tmp_path, "w0")
    parent.path.unlink()
    if content is not None:
        parent.path.write_bytes(content)
    parent.request("signal")
    assert parent.told("prepare") == [] and parent.told("refuse") == ["w0"]
    assert parent.reloaded.errors and parent.reloads.counts[("failure", "signal")] == 1


def test_a_change_of_the_file_is_a_reload(tmp_path: Path) -> None:
    """When it has stopped to change, once; the same content again is none."""
    parent = Parent(tmp_path, "w0")
    parent.pass_time(5)
    assert parent.told("prepare") == []
    text = parent.write("two")
    parent.pass_time(3 * LOOK_S)
    assert parent.told("prepare") == ["w0"]
    parent.answer(GOOD, "w0")
    parent.answer({}, "w0")
    assert parent.reloaded.trigger == "file"
    parent.path.write_text(text, encoding="utf-8")
    parent.pass_time(5)
    assert parent.told("prepare") == []


def test_a_file_that_is_being_replaced_is_waited_for(tmp_path: Path) -> None:
    """The old one is away, the new one not there yet; when it stays away, that is told."""
    parent = Parent(tmp_path, "w0")
    text = parent.write("two")
    parent.path.unlink()
    parent.pass_time(MOST_UNSETTLED_S / 2)
    assert parent.events == []
    parent.path.write_text(text, encoding="utf-8")
    parent.pass_time(3 * LOOK_S)
    assert parent.told("prepare") == ["w0"]
    parent.answer(GOOD, "w0")
    parent.answer({}, "w0")
    parent.path.unlink()
    parent.pass_time(MOST_UNSETTLED_S + 3 * LOOK_S)
    assert "no such file" in str(parent.reloaded.errors[0])
    assert parent.told("prepare") == []


def test_a_file_that_a_refused_configuration_names_is_watched(tmp_path: Path) -> None:
    """A key that comes after the configuration that names it."""
    parent = Parent(tmp_path, "w0")
    parent.request("signal")
    parent.answer({**BAD, "files": [str(tmp_path / "key")]}, "w0")
    parent.pass_time(2 * MOST_UNSETTLED_S)
    assert parent.told("prepare") == ["w0"] and parent.reloaded.errors
    (tmp_path / "key").write_text("sk-router-0123456789abcdef", encoding="utf-8")
    parent.pass_time(3 * LOOK_S)
    assert parent.told("prepare") == ["w0"]


def test_a_file_that_was_not_there_is_not_waited_for(tmp_path: Path) -> None:
    """A deployment's key is missing, which is a warning: edits are followed as fast as without it."""
    parent = Parent(tmp_path, "w0")
    parent.request("signal")
    parent.answer({**GOOD, "files": [str(tmp_path / "key")]}, "w0")
    parent.answer({}, "w0")
    parent.told("prepare")
    parent.write("two")
    parent.pass_time(3 * LOOK_S)
    assert parent.told("prepare") == ["w0"]


def test_a_file_that_never_stops_to_change_is_read_as_it_is(tmp_path: Path) -> None:
    """After a while; whatever is in it then."""
    parent = Parent(tmp_path, "w0")
    for number in range(round(2 * MOST_UNSETTLED_S / LOOK_S)):
        parent.write("x" * (number + 1))
        parent.clock.advance(LOOK_S)
        parent.reloads.step()
    assert parent.told("prepare") == ["w0"]


def test_a_change_before_the_first_look_is_seen(tmp_path: Path) -> None:
    """The file was edited while the workers started."""
    parent = Parent(tmp_path, "w0")
    origin = Origin(source=Source.of(str(parent.path)), loaded=load(parent.path, environ={}))
    parent.write("two")
    parent.reloads = Reloads(
        origin,
        workers=lambda: ["w0"],
        send=parent._send,
        accepted=parent.accepted.append,
        tell=Observers(),
        clock=parent.clock,
    )
    parent.pass_time(1)
    assert parent.told("prepare") == ["w0"]
