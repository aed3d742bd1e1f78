"""What a worker does to ask its parent little, and how its log tells of it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Literal

import orjson
import pytest

from router import logs
from router.events import Notice
from router.tasks import Tasks
from router.workers.channel import ChannelLost
from router.workers.worker import _Together
from tests.helpers.running import until


class Asked:
    """Questions that are answered when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[int]] = []

    async def __call__(self) -> int:
        """Ask."""
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.waiting.append(answer)
        return await answer


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    """An owner whose tasks must not fail."""
    failed: list[str] = []
    owner = Tasks(on_error=lambda name, error: failed.append(f"{name}: {error}"))
    yield owner
    await owner.close(timeout_s=1.0)
    assert failed == []


async def test_many_who_ask_at_once_are_one_question(tasks: Tasks) -> None:
    """Those who come while it is on its way share the next one: its answer is not older than they are."""
    asked = Asked()
    together = _Together(asked, tasks)
    first = [asyncio.create_task(together()) for _ in range(5)]
    await until(lambda: len(asked.waiting) == 1)
    second = [asyncio.create_task(together()) for _ in range(5)]
    await asyncio.sleep(0)
    assert len(asked.waiting) == 1
    asked.waiting[0].set_result(1)
    assert await asyncio.gather(*first) == [1] * 5
    await until(lambda: len(asked.waiting) == 2)
    asked.waiting[1].set_result(2)
    assert await asyncio.gather(*second) == [2] * 5
    assert len(tasks) == 0


async def test_one_that_leaves_takes_nothing_away(tasks: Tasks) -> None:
    """A client that hangs up, be it the one for whom the question was asked."""
    asked = Asked()
    together = _Together(asked, tasks)
    leaver, stayer = (asyncio.create_task(together()) for _ in range(2))
    await until(lambda: len(asked.waiting) == 1)
    leaver.cancel()
    await until(leaver.done)
    asked.waiting[0].set_result(1)
    assert await stayer == 1


async def test_a_failure_is_everybodys_and_the_next_question_is_new(tasks: Tasks) -> None:
    """Nobody waits for an answer that will not come, and nobody's departure makes noise."""
    asked = Asked()
    together = _Together(asked, tasks)
    leaver, stayer = (asyncio.create_task(together()) for _ in range(2))
    await until(lambda: len(asked.waiting) == 1)
    leaver.cancel()
    await until(leaver.done)
    asked.waiting[0].set_exception(ChannelLost("gone"))
    with pytest.raises(ChannelLost):
        await stayer
    again = asyncio.create_task(together())
    await until(lambda: len(asked.waiting) == 2)
    asked.waiting[1].set_result(2)
    assert await again == 2


async def test_the_end_of_the_process_leaves_nobody_waiting(tasks: Tasks) -> None:
    """Who waits for the answer or the next one is told; who comes later is refused."""
    asked = Asked()
    together = _Together(asked, tasks)
    first = asyncio.create_task(together())
    await until(lambda: len(asked.waiting) == 1)
    second = asyncio.create_task(together())
    await asyncio.sleep(0)
    await tasks.close(timeout_s=1.0)
    for waiting in (first, second):
        with pytest.raises(ChannelLost):
            await waiting
    with pytest.raises(ChannelLost):
        await together()


@pytest.mark.parametrize("format", ["json", "console"])
def test_each_line_has_the_workers_number(format: Literal["json", "console"]) -> None:
    """Number 0 as well, as the first fact; a fact of that name stays beside it. Without workers there is none."""
    lines = []
    for worker in (0, None):
        stream = io.StringIO()
        with logs.configure(format, "info", stream, worker=worker, environ={}):
            logs.LogObserver()(Notice(level="info", event="said", facts={"worker": "somebody", "more": 1}))
        lines.append(stream.getvalue())
    if format == "json":
        first, second = map(orjson.loads, lines)
        assert list(first)[3:] == ["worker", "worker_", "more"]
        assert (first["worker"], first["worker_"]) == (0, "somebody")
        assert list(second)[3:] == ["worker", "more"]
    else:
        assert lines[0].endswith(" worker=0 worker_=somebody more=1\n")
        assert lines[1].endswith(" worker=somebody more=1\n")
