"""One process's reloads, one after the other: what they are asked for, what may go wrong, and what is looked at afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from router import reload as module
from router.config import load
from router.config.settings import Settings
from router.events import Event, Observers, Reloaded
from router.reload import Origin, Reloader, Source
from tests.helpers.processes import written
from tests.helpers.running import config_of, until

BASE = "http://127.0.0.1:9/v1"


class Process:
    """What a reload changes, as far as it sees of it."""

    def __init__(self, folder: Path) -> None:
        self.path = written(folder, config_of(BASE))
        self.events: list[Event] = []
        self.applied: list[int] = []
        origin = Origin(source=Source.of(str(self.path)), loaded=load(self.path, environ={}))
        self.reloader = Reloader(origin, apply=self._apply, tell=Observers([self.events.append]))

    def _apply(self, settings: Settings, *, generation: int) -> None:
        self.applied.append(generation)

    def write(self, alias: str, **general: Any) -> None:
        """Another legal file."""
        written(self.path.parent, config_of(BASE, router={"model_group_alias": {alias: "voice"}}, general=general))

    @property
    def reloads(self) -> list[Reloaded]:
        """What was told of them."""
        return [event for event in self.events if isinstance(event, Reloaded)]


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    """One that runs."""
    process = Process(tmp_path)
    yield process
    await process.reloader.close()


async def test_a_flood_is_two_reloads(process: Process) -> None:
    """One that has begun to read may have missed something; all who ask while the next one waits mean the same."""
    for number in range(200):
        process.reloader.request("signal")
        if number == 100:
            await asyncio.sleep(0)
    documents: list[Mapping[str, Any]] = list(await asyncio.gather(*(process.reloader.reload("api") for _ in range(50))))
    assert len(process.reloads) <= 2 and process.applied == [event.generation for event in process.reloads]
    assert {document["generation"] for document in documents} == {process.applied[-1]}
    await process.reloader.reload("api")
    assert process.reloads[-1].trigger == "api"


async def test_what_nobody_expects_is_a_refusal(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without threads or memory left: it is told, and the next change of the file is followed."""

    async def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    process.reloader.start()
    with monkeypatch.context() as patch:
        patch.setattr(module, "prepare_in_thread", fail)
        process.write("one")
        await until(lambda: bool(process.reloads), every_s=0.02)
        assert "RuntimeError" in str(process.reloads[0].errors[0]) and process.applied == []
    process.write("two")
    await until(lambda: bool(process.applied), every_s=0.02)
    assert not process.reloads[-1].errors


async def test_a_file_that_a_refused_configuration_names_is_watched(process: Process) -> None:
    """A key that comes after the configuration that names it: nobody has to touch that one again."""
    process.reloader.start()
    process.write("one", master_key="file:key")
    await until(lambda: bool(process.reloads), every_s=0.02)
    assert process.reloads[0].errors
    (process.path.parent / "key").write_text("sk-router-0123456789abcdef", encoding="utf-8")
    await until(lambda: bool(process.applied), every_s=0.02)
    assert process.reloads[-1].trigger == "file" and not process.reloads[-1].errors
