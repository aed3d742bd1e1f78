"""The time limit that counts a peer's silence and not this process's lateness."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from router.fleet.budget import budget


async def test_silence_ends_the_block() -> None:
    """Nothing comes: TimeoutError."""
    with pytest.raises(TimeoutError):
        async with budget(0.01):
            await asyncio.Event().wait()


async def test_an_answer_in_time_is_an_answer() -> None:
    """The block's own result and its own errors pass."""
    async with budget(5):
        await asyncio.sleep(0)
    with pytest.raises(KeyError):
        async with budget(5):
            raise KeyError("own")


async def test_a_loop_that_was_busy_is_no_silence() -> None:
    """The answer lies there while the loop is held up for longer than the limit: it is heard."""
    pair = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=pair[0])
    try:
        with pair[1]:
            for _ in range(3):
                pair[1].send(b"answer\n")
                async with budget(0.02):
                    waiting = asyncio.ensure_future(reader.readline())
                    await asyncio.sleep(0)
                    time.sleep(0.05)  # noqa: ASYNC251 (the loop is to be held up)
                    assert await waiting == b"answer\n"
    finally:
        writer.close()


async def test_a_loop_that_is_always_busy_ends_it_after_all() -> None:
    """Own lateness excuses a silence a few times, not for ever."""

    async def busy() -> None:
        while True:
            time.sleep(0.01)  # noqa: ASYNC251 (the loop is to be held up)
            await asyncio.sleep(0)

    other = asyncio.create_task(busy())
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(20), budget(0.005):
                await asyncio.Event().wait()
    finally:
        other.cancel()


async def test_a_cancellation_from_outside_stays_one() -> None:
    """Whoever cancels the task is not answered by a time limit."""

    async def wait() -> None:
        async with budget(5):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
