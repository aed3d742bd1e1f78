"""Servers that several integration tests need."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.helpers.parts import require
from tests.helpers.redis_servers import SERVERS, RedisServer, redis_server


@pytest.fixture(params=SERVERS)
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A Redis or Valkey server of each version that is supported."""
    async with redis_server(require(request.param), tmp_path) as running:
        yield running
