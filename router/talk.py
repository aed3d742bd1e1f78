"""A client for the terminal: one turn by text, with what came and when. To try a router, or to see why it does not work."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import sys
import time
from typing import Any, Final

import aiohttp
from yarl import URL

# The router answers within 8 s by default; after that nothing is to be expected.
_OPEN_TIMEOUT_S: Final = 15.0
_BODY_BYTES: Final = 8192


async def talk(url: str, *, model: str, key: str | None, text: str, timeout_s: float, ca_file: str | None = None) -> int:
    """Hold one turn and print it.

    Args:
        url: of the router, such as ``ws://127.0.0.1:4000/v1/realtime``.
        model: a group's name.
        key: the router's, if it wants one.
        text: what to say.
        timeout_s: for the whole turn.
        ca_file: PEM file of the authority that signed the router's certificate; ``None``: the system's.

    Returns: exit code: 0 when the answer was complete.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    target = URL(url).update_query(model=model)
    if target.scheme not in ("ws", "wss", "http", "https") or not target.host:
        print(f"--url: found {url!r}, expected an address such as ws://127.0.0.1:4000/v1/realtime", file=sys.stderr)
        return 2
    try:
        context = ssl.create_default_context(cafile=ca_file) if ca_file is not None else True
    except (OSError, ssl.SSLError) as error:
        print(f"--ca-file: {error.strerror or type(error).__name__}, expected a PEM file", file=sys.stderr)
        return 2
    started = time.monotonic()
    refusals: list[str] = []  # the router's words when it refuses
    answered: list[str] = []  # the deployment that the 101 names, where the router exposes it

    async def note(session: object, context: object, params: aiohttp.TraceRequestEndParams) -> None:
        answered.append(params.response.headers.get("x-router-deployment", ""))
        if params.response.status != 101:
            refusals.append(_reason(await params.response.content.read(_BODY_BYTES)))

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(note)
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None), trace_configs=[trace]) as session:
            response = session.ws_connect(target, headers=headers, max_msg_size=0, protocols=("realtime",), ssl=context)
            async with asyncio.timeout(_OPEN_TIMEOUT_S):
                socket = await response
            async with socket:
                served = "".join(answered)
                print(f"open after {_ms(started)}" + (f", served by {served}" if served else ""))
                async with asyncio.timeout(timeout_s):
                    return await _turn(socket, text)
    except aiohttp.WSServerHandshakeError as error:
        print(f"refused with HTTP {error.status}: {''.join(refusals) or 'no reason given'}", file=sys.stderr)
        if error.status == 401:
            print("The key goes into --key, or REALTIME_ROUTER_KEY.", file=sys.stderr)
    except aiohttp.ClientConnectorCertificateError as error:
        print(f"{target.host}:{target.port}: its certificate is not trusted: {error.certificate_error}", file=sys.stderr)
        print("--ca-file names who signed it.", file=sys.stderr)
    except aiohttp.ClientConnectorError as error:
        print(f"cannot connect to {target.host}:{target.port}: {error.os_error.strerror or error.os_error}", file=sys.stderr)
    except aiohttp.ClientError as error:
        print(f"cannot connect to {target.host}:{target.port}: {error}", file=sys.stderr)
    except TimeoutError:
        print("no complete answer in time", file=sys.stderr)
    return 1


def _ms(since: float) -> str:
    return f"{(time.monotonic() - since) * 1000:.0f} ms"


async def _turn(socket: aiohttp.ClientWebSocketResponse, text: str) -> int:
    """Ask, and print the answer as it comes."""
    asked = time.monotonic()
    sent = False
    audio_bytes = 0
    first_audio = ""
    spoken = False
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.TEXT:
            continue
        event = json.loads(message.data)
        kind = event.get("type", "")
        if kind in ("session.created", "conversation.created") and not sent:
            sent = True
            asked = time.monotonic()
            await _ask(socket, text)
        elif kind in ("response.output_audio.delta", "response.audio.delta"):
            first_audio = first_audio or f", first audio after {_ms(asked)}"
            audio_bytes += len(base64.b64decode(event.get("delta", "")))
        elif kind in ("response.output_audio_transcript.delta", "response.audio_transcript.delta", "response.output_text.delta"):
            spoken = True
            print(event.get("delta", ""), end="", flush=True)
        elif kind == "error":
            print(f"error event: {event.get('error')}", file=sys.stderr)
        elif kind == "response.done":
            print("\n" if spoken else "", end="")
            return _done(event, audio_bytes, f"{_ms(asked)}{first_audio}")
    print("\n" if spoken else "", end="")
    print(f"closed with {socket.close_code} before the answer was complete", file=sys.stderr)
    return 1


def _reason(body: bytes) -> str:
    """The message in a refusal's body."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return ""


def _done(event: dict[str, Any], audio_bytes: int, times: str) -> int:
    response = event.get("response") or {}
    # xAI puts it beside the response.
    usage = response.get("usage") or event.get("usage") or {}
    # 24 kHz, 16 bits: 48,000 bytes a second.
    seconds = audio_bytes / 48_000
    print(f"{response.get('status')} after {times}; {seconds:.1f} s of audio, {usage.get('total_tokens', 0)} tokens")
    if response.get("status") == "completed":
        return 0
    print(f"reason: {response.get('status_details')}", file=sys.stderr)
    return 1


async def _ask(socket: aiohttp.ClientWebSocketResponse, text: str) -> None:
    content = [{"type": "input_text", "text": text}]
    await socket.send_json({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}})
    await socket.send_json({"type": "response.create"})
