"""The fixture ends what it started, and an inner failure fails the test."""

from __future__ import annotations

import asyncio

import pytest

from router.simulator.pytest_plugin import SimulatorFactory, simulators


async def test_fixture_gives_running_simulators(simulator: SimulatorFactory) -> None:
    """Each call starts another one, ready to be dialled."""
    first, second = await simulator(), await simulator(dialect="xai")
    assert first.port != second.port
    for sim in (first, second):
        _, writer = await asyncio.open_connection("127.0.0.1", sim.port)
        writer.close()


async def test_simulators_stop_and_report_failures() -> None:
    """After the block nothing listens, and what failed inside comes out."""
    with pytest.raises(AssertionError, match="something broke"):
        async with simulators() as start:
            sim = await start()
            sim.stats.failures.append("handler: something broke")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", sim.port)
