"""A collector of traces: OTLP over HTTP with protobuf, as a router's exporter sends it.

    async with collector() as traces:
        async with router_process(config, environ=traces.environ()) as router:
            ...
        root = await traces.until("realtime voice")
        assert traces.children(root) == [...]
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message
from opentelemetry.proto.trace.v1.trace_pb2 import Status

PATIENCE_S = 20.0


def value_of(value: AnyValue) -> Any:
    """An attribute's value in Python's types."""
    kind = value.WhichOneof("value")
    assert kind in ("string_value", "bool_value", "int_value", "double_value"), kind
    return getattr(value, kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A span as it arrived, taken apart."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str  # empty: it has none
    state: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: dict[str, tuple[int, dict[str, Any]]]  # name → when, and its attributes
    error: bool
    message: str
    resource: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end_ns - self.start_ns) / 1e9

    def __getitem__(self, key: str) -> Any:
        """An attribute; the router's own ones without their prefix."""
        return self.attributes[key] if key in self.attributes else self.attributes[f"realtime_router.{key}"]


def _received(span: Message, resource: dict[str, Any]) -> Received:
    return Received(
        name=span.name,
        kind=Message.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        state=span.trace_state,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes={item.key: value_of(item.value) for item in span.attributes},
        events={
            event.name: (event.time_unix_nano, {item.key: value_of(item.value) for item in event.attributes})
            for event in span.events
        },
        error=span.status.code == Status.STATUS_CODE_ERROR,
        message=span.status.message,
        resource=resource,
    )


class Collector:
    """What has arrived.

    Attributes:
        url: for ``OTEL_EXPORTER_OTLP_ENDPOINT``.
        spans: in the order of their arrival.
        requests: how many came, answered or not.
        bodies: what they held, for a look for what must not be there.
        headers: of the last one.
        status: that it answers with.
        hangs: it takes requests and does not answer.
    """

    def __init__(self) -> None:
        self.url = ""
        self.spans: list[Received] = []
        self.requests = 0
        self.bodies = bytearray()
        self.headers: dict[str, str] = {}
        self.status = 200
        self.hangs = False
        self._more = asyncio.Event()
        self._released = asyncio.Event()

    def environ(self, **more: str) -> dict[str, str]:
        """What makes a router send its spans here, soon."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_BSP_SCHEDULE_DELAY": "50", **more}

    async def take(self, request: web.Request) -> web.Response:
        """Receive spans."""
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.requests += 1
        self.bodies += body
        self.headers = dict(request.headers)
        self._more.set()
        if self.hangs:
            await self._released.wait()
        if self.status == 200:
            for part in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = {item.key: value_of(item.value) for item in part.resource.attributes}
                self.spans += [_received(span, resource) for scope in part.scope_spans for span in scope.spans]
        self._more.set()
        return web.Response(
            status=self.status,
            body=ExportTraceServiceResponse().SerializeToString(),
            content_type="application/x-protobuf",
        )

    def release(self) -> None:
        """Answer what hangs."""
        self._released.set()

    async def until_true(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; it is looked at whenever something has arrived.

        Raises:
            TimeoutError: it did not hold in time.
        """
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._more.clear()
                await self._more.wait()

    async def until(self, name: str, count: int = 1) -> Received:
        """Wait for the ``count``-th span of a name, and return it."""
        await self.until_true(lambda: len(self.named(name)) >= count)
        return self.named(name)[count - 1]

    def named(self, name: str) -> list[Received]:
        """The spans of a name."""
        return [span for span in self.spans if span.name == name]

    def children(self, parent: Received) -> list[Received]:
        """The spans under one, by their begin."""
        return sorted((span for span in self.spans if span.parent == parent.id), key=lambda span: span.start_ns)


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    """A collector on a free port, until the block ends."""
    received = Collector()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/v1/traces", received.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    received.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield received
    finally:
        received.release()
        await runner.cleanup()
