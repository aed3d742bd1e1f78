"""The simulator as a pytest fixture; registered as a plugin by the distribution, or by ``pytest_plugins`` in a ``conftest.py``.

It needs a plugin that runs asynchronous fixtures and tests, such as pytest-asyncio.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from router.simulator.server import Simulator


class SimulatorFactory(Protocol):
    """Starts simulators that end with the test."""

    async def __call__(self, **options: Any) -> Simulator:
        """Return a running simulator; ``options`` are those of ``Simulator``, the pace is ``fast`` unless given."""


@asynccontextmanager
async def simulators() -> AsyncIterator[SimulatorFactory]:
    """The fixture without pytest: all simulators that the factory started end with the block.

    Raises:
        AssertionError: at the end, when one failed inside (``stats.failures``).
    """
    # Imported here: every test session loads this plugin, few of their tests need a web server.
    from router.simulator.server import Simulator

    started: list[Simulator] = []
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> Simulator:
            sim = await stack.enter_async_context(Simulator(**options))
            started.append(sim)
            return sim

        yield start
    failures = [failure for sim in started for failure in sim.stats.failures]
    if failures:
        raise AssertionError(f"a simulator failed inside: {failures}")


@pytest.fixture
async def simulator() -> AsyncIterator[SimulatorFactory]:
    """``sim = await simulator(dialect="openai", …)``: as many as wanted, all stopped at the end of the test.

    A simulator that failed inside fails the test.
    """
    async with simulators() as start:
        yield start
