"""The owner of background tasks: names, references, reports and the end of all of them."""

from __future__ import annotations

import asyncio
import gc
import inspect
import weakref

import pytest

from router.tasks import Tasks


class Reports:
    """What the owner reported, and a way to wait for it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Exception]] = []
        self.arrived = asyncio.Event()

    def __call__(self, name: str, error: Exception) -> None:
        self.seen.append((name, error))
        self.arrived.set()


async def test_a_task_has_its_name_and_gives_its_result() -> None:
    """The returned task is named as asked, counts while it runs, and yields what the coroutine returned."""
    reports = Reports()
    tasks = Tasks(on_error=reports)

    async def answer() -> int:
        return 42

    task = tasks.spawn(answer(), name="answer")
    assert task.get_name() == "answer"
    assert (len(tasks), tasks.names) == (1, ("answer",))
    assert await task == 42
    assert (len(tasks), tasks.names, reports.seen) == (0, (), [])


async def test_the_owner_keeps_a_task_that_nobody_else_holds() -> None:
    """The loop's reference is weak: a task waiting on a cycle of garbage is collected unless its owner holds it."""
    tasks = Tasks(on_error=Reports())

    async def wait_for_ever() -> None:
        # Only this frame knows the future, so the task and it are one unreachable cycle.
        await asyncio.get_running_loop().create_future()

    reference = weakref.ref(tasks.spawn(wait_for_ever(), name="held"))
    await asyncio.sleep(0)
    gc.collect()
    assert reference() is not None
    assert tasks.names == ("held",)
    await tasks.close(timeout_s=5)


async def test_an_unexpected_exception_is_reported_once() -> None:
    """The owner hears of it with the task's name at the moment the task ends, although nobody awaits it."""
    reports = Reports()
    tasks = Tasks(on_error=reports)

    async def fail() -> None:
        raise LookupError("lost")

    tasks.spawn(fail(), name="loser")
    await asyncio.wait_for(reports.arrived.wait(), 5)
    [(name, error)] = reports.seen
    assert name == "loser"
    assert isinstance(error, LookupError)
    assert len(tasks) == 0


async def test_a_reported_exception_is_not_printed_by_asyncio_as_well() -> None:
    """The exception counts as retrieved, so that collecting the task calls no handler of the loop."""
    unhandled: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
    reports = Reports()
    tasks = Tasks(on_error=reports)

    async def fail() -> None:
        raise LookupError("lost")

    tasks.spawn(fail(), name="loser")
    await asyncio.wait_for(reports.arrived.wait(), 5)
    reports.seen.clear()
    gc.collect()
    assert unhandled == []


async def test_an_expected_exception_belongs_to_whoever_awaits_the_task() -> None:
    """It reaches the awaiting code and is not reported; its subclasses too, others are."""
    reports = Reports()
    tasks = Tasks(on_error=reports)

    async def fail(error: Exception) -> None:
        raise error

    with pytest.raises(ConnectionResetError):
        await tasks.spawn(fail(ConnectionResetError()), name="dial", expected=(OSError,))
    assert reports.seen == []
    with pytest.raises(ValueError):
        await tasks.spawn(fail(ValueError()), name="dial", expected=(OSError,))
    assert [name for name, _ in reports.seen] == ["dial"]


async def test_a_cancelled_task_is_no_failure() -> None:
    """Whoever cancels a task knows why; the owner lets go of it in silence."""
    reports = Reports()
    tasks = Tasks(on_error=reports)
    task = tasks.spawn(asyncio.Event().wait(), name="waiter")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (len(tasks), reports.seen) == (0, [])


async def test_one_failure_leaves_the_others_alone() -> None:
    """Unlike in a TaskGroup, the siblings of a task that fails run on."""
    reports = Reports()
    tasks = Tasks(on_error=reports)
    go = asyncio.Event()

    async def fail() -> None:
        raise LookupError("lost")

    sibling = tasks.spawn(go.wait(), name="sibling")
    tasks.spawn(fail(), name="loser")
    await asyncio.wait_for(reports.arrived.wait(), 5)
    assert tasks.names == ("sibling",)
    go.set()
    assert await sibling is True


async def test_close_cancels_and_waits_for_the_clean_up_of_all() -> None:
    """Close returns after the last ``finally``, and leaves nothing behind."""
    tasks = Tasks(on_error=Reports())
    cleaned: list[int] = []
    started = [asyncio.Event() for _ in range(3)]

    async def work(number: int) -> None:
        started[number].set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(number)

    for number in range(3):
        tasks.spawn(work(number), name=f"work {number}")
    for event in started:
        await event.wait()
    assert await tasks.close(timeout_s=5) == ()
    assert sorted(cleaned) == [0, 1, 2]
    assert len(tasks) == 0


async def test_close_names_whoever_swallows_its_cancellation() -> None:
    """A task that goes on is named after the time is up, and stays with its owner until it ends."""
    tasks = Tasks(on_error=Reports())
    stop = asyncio.Event()
    started = asyncio.Event()

    async def stubborn() -> None:
        started.set()
        while not stop.is_set():
            try:
                await stop.wait()
            except asyncio.CancelledError:
                continue

    task = tasks.spawn(stubborn(), name="stubborn")
    await started.wait()
    assert await tasks.close(timeout_s=0.01) == ("stubborn",)
    assert tasks.names == ("stubborn",)
    stop.set()
    await task
    assert len(tasks) == 0


async def test_a_failure_during_close_is_reported() -> None:
    """Clean-up code that raises is as unexpected as any other."""
    reports = Reports()
    tasks = Tasks(on_error=reports)
    started = asyncio.Event()

    async def messy() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError("lost the key to the lock")

    tasks.spawn(messy(), name="messy")
    await started.wait()
    assert await tasks.close(timeout_s=5) == ()
    # The loop calls the owner and the waiting ``close`` in the order they asked, the owner first.
    assert [name for name, _ in reports.seen] == ["messy"]


async def test_nothing_starts_after_close() -> None:
    """A late spawn is refused, and its coroutine is closed rather than left un-awaited (warnings are errors here)."""
    tasks = Tasks(on_error=Reports())
    assert await tasks.close(timeout_s=5) == ()
    ran: list[str] = []

    async def late() -> None:
        ran.append("late")

    coro = late()
    with pytest.raises(RuntimeError, match="'late' not started"):
        tasks.spawn(coro, name="late")
    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
    assert ran == []
    assert await tasks.close(timeout_s=5) == ()


async def test_a_task_may_close_its_own_owner() -> None:
    """The task that calls close is not cancelled by it and does not wait for itself."""
    tasks = Tasks(on_error=Reports())
    waiter = tasks.spawn(asyncio.Event().wait(), name="waiter")

    async def closer() -> tuple[str, ...]:
        return await tasks.close(timeout_s=5)

    assert await tasks.spawn(closer(), name="closer") == ()
    assert waiter.cancelled()
    assert len(tasks) == 0


async def test_cancelling_close_leaves_the_owner_closed() -> None:
    """A cancellation of close goes through at once; the tasks were cancelled and a second close waits for them."""
    tasks = Tasks(on_error=Reports())
    started = asyncio.Event()

    async def slow_to_leave() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.Event().wait()

    tasks.spawn(slow_to_leave(), name="slow")
    await started.wait()
    closing = asyncio.create_task(tasks.close(timeout_s=60))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert tasks.names == ("slow",)
    # The second cancellation ends the wait in its clean-up.
    assert await tasks.close(timeout_s=5) == ()
    assert len(tasks) == 0


def test_spawn_outside_a_loop_closes_the_coroutine() -> None:
    """Without a running loop the caller gets asyncio's error and no warning about the coroutine."""

    async def never() -> None:
        raise AssertionError("ran")

    coro = never()
    with pytest.raises(RuntimeError, match="no running event loop"):
        Tasks(on_error=lambda _name, _error: None).spawn(coro, name="never")
    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
