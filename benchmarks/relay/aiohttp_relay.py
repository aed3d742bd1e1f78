"""A relay as one writes it with aiohttp in an afternoon: message by message, on asyncio or uvloop.

    python -m benchmarks.relay.aiohttp_relay --port 4000 --upstream ws://127.0.0.1:5000 --client-key A --upstream-key B
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import aiohttp
from aiohttp import WSMsgType, web

# Given a text message, its direction's state and whether it comes from the client, returns what goes on.
Alter = Callable[[str, dict[str, Any], bool], Iterable[str]]
Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


def unchanged(text: str, state: dict[str, Any], from_client: bool) -> Iterable[str]:
    """Every message as it came."""
    return (text,)


async def pump(source: Socket, target: Socket, alter: Alter, *, from_client: bool) -> None:
    """Relay one direction until its CLOSE."""
    state: dict[str, Any] = {}
    while True:
        message = await source.receive()
        if message.type is WSMsgType.TEXT:
            for text in alter(message.data, state, from_client):
                await target.send_str(text)
        elif message.type is WSMsgType.BINARY:
            await target.send_bytes(message.data)
        else:
            break
    code = message.data if message.type is WSMsgType.CLOSE and message.data else source.close_code
    if not target.closed:
        await target.close(code=code if code and code != 1006 else 1011)


async def serve(options: argparse.Namespace, alter: Alter) -> None:
    """Serve until the process is ended."""
    tls: ssl.SSLContext | bool = True
    if options.ca_file:
        tls = ssl.create_default_context(cafile=options.ca_file)

    async def relay(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {options.client_key}":
            return web.Response(status=401)
        async with session.ws_connect(
            options.upstream + request.rel_url.raw_path_qs,
            headers={"Authorization": f"Bearer {options.upstream_key}"},
            max_msg_size=0,
            ssl=tls,
            server_hostname=options.server_name if options.ca_file else None,
        ) as upstream:
            client = web.WebSocketResponse(max_msg_size=0, compress=False)
            await client.prepare(request)
            up = asyncio.create_task(pump(client, upstream, alter, from_client=True))
            down = asyncio.create_task(pump(upstream, client, alter, from_client=False))
            await asyncio.wait({up, down})
        return client

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        app = web.Application()
        app.router.add_get("/v1/realtime", relay)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", options.port, backlog=1024).start()
        await asyncio.Event().wait()


def main(arguments: Sequence[str] | None = None, *, alter: Alter = unchanged) -> None:
    """Run the relay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True, help="ws://HOST:PORT or wss://HOST:PORT")
    parser.add_argument("--client-key", required=True)
    parser.add_argument("--upstream-key", required=True)
    parser.add_argument("--ca-file", default="")
    parser.add_argument("--server-name", default="localhost")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    options = parser.parse_args(arguments)
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if options.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(options, alter))


if __name__ == "__main__":
    main()
