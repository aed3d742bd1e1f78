"""Requests to a router's admin API, and what to say when they fail."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, cast
from urllib.parse import quote

import aiohttp
from yarl import URL

from router.config.source import printable

# A router with workers asks all of them, for at most three seconds; a reload may take as long as its file is long.
_TIMEOUT_S: Final = 30.0
_SESSIONS_PATH: Final = "/v1/realtime"
_MOST_BYTES: Final = 64 * 1024 * 1024


class CtlError(Exception):
    """A command that cannot be done.

    Args:
        message: why, and what to do.
        usage: the command line is at fault.
    """

    def __init__(self, message: str, *, usage: bool = False) -> None:
        super().__init__(message)
        self.usage = usage


class Client:
    """One router's admin API. Made by ``connected``.

    Args:
        session: carries the requests.
        base: the router's address, with what all paths begin with.
    """

    def __init__(self, session: aiohttp.ClientSession, base: URL) -> None:
        self._session = session
        self._base = base

    @property
    def where(self) -> str:
        """The router's address, for messages."""
        return str(self._base).rstrip("/")

    async def get(self, *path: str, query: Mapping[str, str | int | None] | None = None) -> dict[str, Any]:
        """Return a document.

        Args:
            path: behind ``/admin/``, piece by piece.
            query: what is ``None`` is left out.

        Raises:
            CtlError: there is none.
        """
        wanted = {name: str(value) for name, value in (query or {}).items() if value is not None}
        return await self._request("GET", path, params=wanted)

    async def post(self, *path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Do something, and return the document that tells of it.

        Raises:
            CtlError: it was not done.
        """
        return await self._request("POST", path, json=body)

    async def _request(self, method: str, path: tuple[str, ...], **options: Any) -> dict[str, Any]:
        pieces = "/".join(quote(piece, safe="") for piece in path)
        target = URL(f"{self.where}/admin/{pieces}", encoded=True)
        try:
            async with self._session.request(method, target, allow_redirects=False, **options) as response:
                return self._read(response.status, await self._whole(response))
        except aiohttp.ClientConnectorCertificateError as error:
            reason = printable(str(error.certificate_error), 200)
            raise CtlError(f"{self.where}: its certificate is not trusted: {reason}. --ca-file names who signed it.") from None
        except aiohttp.ClientConnectorError as error:
            # Names that are not found have numbers of their own, below zero.
            known = error.errno is not None and error.errno > 0
            reason = os.strerror(cast(int, error.errno)) if known else printable(str(error.os_error), 200)
            raise CtlError(
                f"cannot reach {self.where}: {reason}. Is a router running there, and is it the address of its operators "
                "(general_settings.ops_listen)? --url names another one."
            ) from None
        except TimeoutError:
            raise CtlError(f"{self.where}: no answer within {_TIMEOUT_S:g} s.") from None
        except (aiohttp.ClientError, OSError) as error:
            raise CtlError(f"{self.where}: the answer was cut off or is no HTTP ({type(error).__name__}).") from None

    async def _whole(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the body; a stream's ``read`` would return what has come by now."""
        data = bytearray()
        while chunk := await response.content.readany():
            data += chunk
            if len(data) > _MOST_BYTES:
                raise CtlError(f"{self.where}: found an answer of more than {_MOST_BYTES >> 20} MiB, expected a shorter one.")
        return bytes(data)

    def _read(self, status: int, data: bytes) -> dict[str, Any]:
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            document = None
        error = document.get("error") if isinstance(document, dict) else None
        if not isinstance(document, dict) or (status != 200 and not isinstance(error, dict)):
            raise self._no_router(status)
        if status == 200:
            return document
        assert isinstance(error, dict)  # checked above
        message = printable(str(error.get("message", "")), 2000)
        if status == 401:
            raise CtlError(f"{self.where} refuses the key: {message} Give the master key as REALTIME_ROUTER_KEY or by --key.")
        if status == 404 and error.get("code") == "not_found" and error.get("param") is None:
            raise self._no_router(status)
        if status == 422:
            try:
                # The message ends with the first of them.
                more = document["config"]["last_reload"]["errors"][1:]
                texts = "\n".join(printable(str(one["text"]), 500) for one in more)
            except (LookupError, TypeError):
                texts = ""
            raise CtlError(f"{message}\n{texts}" if texts else message)
        raise CtlError(message or f"{self.where} answers with HTTP {status}.")

    def _no_router(self, status: int) -> CtlError:
        return CtlError(
            f"{self.where} has no admin API (HTTP {status}): it is no router, or the router's operators have an address of their "
            "own (general_settings.ops_listen). --url names another one."
        )


def base_of(url: str) -> URL:
    """Return the address of a router from what its user wrote; that of its sessions will do.

    Raises:
        CtlError: it is none.
    """
    expected = CtlError(f"--url: found {printable(url, 100)!r}, expected an address such as http://127.0.0.1:4000", usage=True)
    try:
        parsed = URL(url)
        host, port = parsed.host, parsed.port
    except ValueError:
        raise expected from None
    scheme = {"http": "http", "https": "https", "ws": "http", "wss": "https"}.get(parsed.scheme)
    if scheme is None or not host or port is None:
        raise expected
    if parsed.user is not None or parsed.password is not None:
        raise CtlError("--url: found a user or password, expected none; the key is given by REALTIME_ROUTER_KEY", usage=True)
    path = parsed.raw_path.rstrip("/").removesuffix(_SESSIONS_PATH)
    # The query and the fragment go with the path.
    return parsed.with_scheme(scheme).with_path(path or "/", encoded=True)


@asynccontextmanager
async def connected(url: str, *, key: str | None, ca_file: str | None = None) -> AsyncIterator[Client]:
    """A client of one router.

    Args:
        url: of it.
        key: its master key, if it has one.
        ca_file: PEM file of the authority that signed its certificate; ``None``: the system's.

    Raises:
        CtlError: the address or the file cannot be used.
    """
    base = base_of(url)
    headers = {}
    if key:
        if not key.isascii() or not key.isprintable():
            raise CtlError("--key: found characters that cannot be in a key, expected printable ASCII", usage=True)
        headers["Authorization"] = f"Bearer {key}"
    connector = aiohttp.TCPConnector(ssl=_context(ca_file)) if ca_file is not None else aiohttp.TCPConnector()
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:
        yield Client(session, base)
    # Connections by TLS are gone a turn of the loop after they are closed.
    await asyncio.sleep(0)


def _context(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or type(error).__name__
        raise CtlError(f"--ca-file: {printable(ca_file, 200)}: {reason}, expected a PEM file", usage=True) from None
