"""Entra ID tokens for Azure deployments: given as such, read from a file, or printed by a command.

A token lives for about an hour, a session needs it only while it is dialled, so each dial asks here. Most answers come from
memory. A command (``az account get-access-token`` takes a second or more) runs once for all dials that wait, outlives a dial
that gives up so that the next one profits, and is run again before its token expires, beside the dials.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from router.config.settings import DeploymentSettings, Secret
from router.errors import ConnectFailed
from router.tasks import ErrorReport, Tasks

COMMAND_TIMEOUT_S = 15.0
_FILE_TIMEOUT_S = 2.0
# Longest use of a token whose expiry is not known.
_UNKNOWN_LIFETIME_S = 300.0
# A command that failed is not run again for every single dial.
_FAILURE_PAUSE_S = 2.0
_MAX_OUTPUT_BYTES = 64 * 1024
_MAX_ERROR_BYTES = 4 * 1024
_MAX_ERROR_CHARS = 200
_KILL_WAIT_S = 2.0

# What tells that a file is another one or was written to: device, inode, modification time in ns, size.
_Stamp = tuple[int, int, int, int]

_TOKEN_NAMES = ("accessToken", "access_token", "token")
_LONG_WORD = re.compile(r"[^\s'\",;]{24,}")


class TokenError(ConnectFailed):
    """No token could be had, so the deployment cannot be dialled. The message holds no token."""


class TokenSource(Protocol):
    """Where the tokens of a deployment come from."""

    async def token(self) -> Secret:
        """Return a token that is valid now.

        Raises:
            TokenError: there is none.
        """

    def invalidate(self) -> None:
        """Forget what is remembered: the upstream has refused it."""

    async def close(self) -> None:
        """End what runs in the background. ``token`` is not called afterwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token with its remaining life.

    Attributes:
        value: the token.
        lifetime_s: seconds from now until it expires; ``None``: not known.
    """

    value: Secret
    lifetime_s: float | None


class StaticToken:
    """A token from the configuration."""

    def __init__(self, token: Secret) -> None:
        self._token = token

    async def token(self) -> Secret:
        """Return it."""
        return self._token

    def invalidate(self) -> None:
        """Nothing is remembered."""

    async def close(self) -> None:
        """Nothing runs."""


class FileToken:
    """A token in a file that somebody else renews, such as a mounted secret.

    The file is looked at before each dial and read when it is another one or was written to (also when a link on the way to
    it was changed, as Kubernetes does). Both happen in a thread: the file may be on a network.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        # The file's stamp when it was read; None before the first time.
        self._stamp: _Stamp | None = None
        self._token: Secret | None = None
        # Set while a thread looks at the file. A network that hangs holds this one thread, not all of them.
        self._look: asyncio.Future[tuple[_Stamp, bytes | None]] | None = None

    async def token(self) -> Secret:
        """Return the file's token.

        Raises:
            TokenError: it cannot be read, or holds none.
        """
        if self._look is None:
            self._look = asyncio.get_running_loop().run_in_executor(None, _read_if_changed, self._path, self._stamp)
            self._look.add_done_callback(self._looked)
        look = self._look
        # Unlike an await, this leaves the thread's result to the other dials when one of them gives up.
        await asyncio.wait({look}, timeout=_FILE_TIMEOUT_S)
        if not look.done():
            raise self._error(f"not read within {_FILE_TIMEOUT_S:g} s")
        try:
            stamp, content = look.result()
            if content is not None:
                self._token = parse_token(content, wall_time_s=time.time()).value
                self._stamp = stamp
        except OSError as exc:
            reason = (exc.strerror or type(exc).__name__).lower()
            raise self._error(f"found {reason}, expected a readable file") from exc
        except ValueError as exc:
            raise self._error(str(exc)) from None
        if self._token is None:
            raise self._error("not read yet")
        return self._token

    def _looked(self, look: asyncio.Future[tuple[_Stamp, bytes | None]]) -> None:
        self._look = None
        if not look.cancelled():
            look.exception()  # told to whoever waits; when nobody does any more, nobody needs it

    def _error(self, problem: str) -> TokenError:
        return TokenError(f"azure_ad_token_file {self._path!r}: {problem}")

    def invalidate(self) -> None:
        """Read the file again at the next dial."""
        self._stamp = None

    async def close(self) -> None:
        """Nothing runs."""


class CommandToken:
    """A token that a command prints, bare or as JSON in the form of ``az account get-access-token``.

    Args:
        argv: the command; no shell is involved.
        on_error: told of what is no ``TokenError``, of runs that nobody waits for as well.
        timeout_s: longest run.
        clock: monotonic seconds.
        wall_clock: epoch seconds, to which the command's ``expiresOn`` refers.
    """

    def __init__(
        self,
        argv: tuple[str, ...],
        *,
        on_error: ErrorReport,
        timeout_s: float = COMMAND_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._argv = argv
        self._timeout_s = timeout_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._tasks = Tasks(on_error=on_error)
        # Set while the command runs.
        self._run: asyncio.Task[Secret] | None = None
        self._token: Secret | None = None
        # Clock times: from when on the command runs beside the dials, and from when on they wait for it.
        self._renew_at = -math.inf
        self._expires_at = -math.inf
        # The last run's failure and until when it stands for a new run.
        self._failure: TokenError | None = None
        self._failure_until = -math.inf

    async def token(self) -> Secret:
        """Return the token of the last run, or wait for a new one.

        Cancelling this does not end the run: the next dial waits for the same one.

        Raises:
            TokenError: the command failed, took too long, or printed no token.
        """
        now = self._clock()
        if self._token is not None and now < self._expires_at:
            if now >= self._renew_at and now >= self._failure_until:
                self._start()
            return self._token
        if self._run is None and self._failure is not None and now < self._failure_until:
            raise TokenError(str(self._failure))
        run = self._start()
        # Unlike an await, this does not cancel what others wait for when one dial gives up.
        await asyncio.wait({run})
        if run.cancelled():
            raise TokenError(f"azure_ad_token_command {self._argv[0]!r}: ended, as the router is closing")
        error = run.exception()
        if isinstance(error, TokenError):
            # A fresh one for each: an exception raised in several tasks would collect all their tracebacks.
            raise TokenError(str(error))
        return run.result()

    def prefetch(self) -> None:
        """Run the command now unless it has run, so that the first dial does not wait for it."""
        if self._token is None:
            self._start()

    def invalidate(self) -> None:
        """Run the command again at the next dial."""
        self._token = None

    async def close(self) -> None:
        """Kill the command if it runs."""
        await self._tasks.close(timeout_s=2 * _KILL_WAIT_S)

    def _start(self) -> asyncio.Task[Secret]:
        if self._run is None:
            self._run = self._tasks.spawn(self._fetch(), name="entra token command", expected=(TokenError,))
        return self._run

    async def _fetch(self) -> Secret:
        try:
            output = await run_command(self._argv, timeout_s=self._timeout_s)
            try:
                token = parse_token(output, wall_time_s=self._wall_clock())
            except ValueError as exc:
                raise TokenError(f"azure_ad_token_command {self._argv[0]!r}: {exc}") from None
        except TokenError as exc:
            self._failure = exc
            self._failure_until = self._clock() + _FAILURE_PAUSE_S
            raise
        finally:
            self._run = None
        now = self._clock()
        lifetime_s = _UNKNOWN_LIFETIME_S if token.lifetime_s is None else token.lifetime_s
        # Five minutes before the end, or after four fifths of a short life, a dial starts the renewal and uses the old one.
        self._renew_at = now + lifetime_s - min(300.0, lifetime_s / 5)
        self._expires_at = now + lifetime_s - min(30.0, lifetime_s / 20)
        self._token = token.value
        self._failure = None
        return token.value


class TokenSources:
    """The token sources of one dialer. Deployments that name the same file or command share it.

    Args:
        on_error: told of a background run's failure that is no ``TokenError``.
    """

    def __init__(self, *, on_error: ErrorReport) -> None:
        self._on_error = on_error
        self._sources: dict[object, TokenSource] = {}

    async def token(self, deployment: DeploymentSettings) -> str | None:
        """Return a token for a dial of the deployment, ``None`` when it uses none.

        Raises:
            TokenError: it uses one and there is none.
        """
        source = self._source(deployment)
        return None if source is None else (await source.token()).reveal()

    def prefetch(self, deployment: DeploymentSettings) -> None:
        """Run the deployment's command, if it has one, before its first dial: within a dial's limit it may be too slow."""
        source = self._source(deployment)
        if isinstance(source, CommandToken):
            source.prefetch()

    def invalidate(self, deployment: DeploymentSettings) -> None:
        """Fetch anew for the next dial: the upstream has refused the token."""
        source = self._source(deployment)
        if source is not None:
            source.invalidate()

    async def close(self) -> None:
        """End every command that runs."""
        sources = list(self._sources.values())
        self._sources.clear()
        for source in sources:
            await source.close()

    def _source(self, deployment: DeploymentSettings) -> TokenSource | None:
        key: object
        if deployment.azure_ad_token is not None:
            return StaticToken(deployment.azure_ad_token)
        if deployment.azure_ad_token_file is not None:
            key = deployment.azure_ad_token_file
        elif deployment.azure_ad_token_command:
            key = deployment.azure_ad_token_command
        else:
            return None
        source = self._sources.get(key)
        if source is None:
            source = (
                FileToken(key)
                if isinstance(key, str)
                else CommandToken(deployment.azure_ad_token_command, on_error=self._on_error)
            )
            self._sources[key] = source
        return source


# --- what is printed -----------------------------------------------------------------------------


def parse_token(output: bytes, *, wall_time_s: float) -> Token:
    """Read a token, bare or in JSON.

    Args:
        output: a file's content or a command's standard output. JSON is an object with ``accessToken``, ``access_token`` or
            ``token``, and for the expiry ``expires_on`` (epoch seconds), ``expiresOn`` (ISO 8601; local time when it names no
            zone, as ``az`` prints it) or ``expires_in`` (seconds).
        wall_time_s: now, epoch seconds.

    Raises:
        ValueError: there is no token, or it has expired. The message does not repeat the output.
    """
    text = output.decode("utf-8", "replace").lstrip("\ufeff").strip()
    if not text:
        raise ValueError("found nothing, expected a token")
    if not text.startswith("{"):
        return Token(value=_checked_token(text), lifetime_s=None)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("found broken JSON, expected a token or a JSON object with accessToken") from None
    value = next((document[name] for name in _TOKEN_NAMES if document.get(name)), None)
    if not isinstance(value, str):
        raise ValueError("found JSON without a token, expected accessToken, access_token or token in it")
    lifetime_s = _lifetime_s(document, wall_time_s)
    if lifetime_s is not None and lifetime_s <= 0:
        raise ValueError("found a token that has expired already (is a clock wrong?), expected a valid one")
    return Token(value=_checked_token(value.strip()), lifetime_s=lifetime_s)


def _checked_token(value: str) -> Secret:
    # A word of visible ASCII: whatever else was printed (a warning, a login page) is no token.
    if not value.isascii() or not value.isprintable() or " " in value or not value:
        raise ValueError("found text that is no token, expected a single word of ASCII characters")
    return Secret(value)


def _lifetime_s(document: Mapping[str, object], wall_time_s: float) -> float | None:
    for name in ("expires_on", "expiresOn"):
        epoch_s = _epoch_s(document.get(name))
        if epoch_s is not None:
            return epoch_s - wall_time_s
    return _number(document.get("expires_in"))


def _epoch_s(value: object) -> float | None:
    number = _number(value)
    if number is not None:
        return number
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _read_if_changed(path: str, known: _Stamp | None) -> tuple[_Stamp, bytes | None]:
    """Return a file's stamp and, unless that is the known one, its content. Blocks."""
    status = os.stat(path)
    # A pipe would block the thread for ever.
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("found something that is no file, expected a regular file")
    stamp = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
    if stamp == known:
        return stamp, None
    with open(path, "rb") as file:
        content = file.read(_MAX_OUTPUT_BYTES + 1)
    if len(content) > _MAX_OUTPUT_BYTES:
        raise ValueError(f"found more than {_MAX_OUTPUT_BYTES} bytes, expected a token")
    return stamp, content


# --- the command ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _Output(asyncio.SubprocessProtocol):
    """Collects what a command prints, bounded, and tells when it has ended."""

    stdout: bytearray = field(default_factory=bytearray, repr=False)
    stderr: bytearray = field(default_factory=bytearray, repr=False)
    overflow: bool = False
    # The process has ended and both pipes are closed, or there is no reason to wait for that any more.
    done: asyncio.Event = field(default_factory=asyncio.Event)
    exited: asyncio.Event = field(default_factory=asyncio.Event)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self.stderr += data
            del self.stderr[:-_MAX_ERROR_BYTES]
            return
        if len(self.stdout) + len(data) > _MAX_OUTPUT_BYTES:
            self.overflow = True
            self.done.set()
            return
        self.stdout += data

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.exited.set()
        self.done.set()


async def run_command(argv: tuple[str, ...], *, timeout_s: float) -> bytes:
    """Run a command to its end and return what it printed.

    It gets a session of its own, and whatever runs in that is killed when the time is up or the caller is cancelled: ``az`` is
    a shell script that starts Python, and killing the script alone would leave that behind.

    Raises:
        TokenError: it cannot be started, takes too long, fails, or prints more than 64 KiB.
    """
    where = f"azure_ad_token_command {argv[0]!r}"
    loop = asyncio.get_running_loop()
    # A task of its own: when a start is cancelled, asyncio kills the command alone and waits for whoever has inherited its pipes.
    start = Tasks(on_error=_nobody).spawn(
        loop.subprocess_exec(_Output, *argv, stdin=asyncio.subprocess.DEVNULL, start_new_session=True),
        name="start of a token command",
        expected=(Exception,),
    )
    try:
        transport, output = await asyncio.shield(start)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError, ValueError):
            await _end(*await start)
        raise
    except (OSError, ValueError) as exc:
        reason = (exc.strerror if isinstance(exc, OSError) else None) or "an unusable argument"
        raise TokenError(f"{where}: cannot be started: {reason.lower()}") from exc
    try:
        async with asyncio.timeout(timeout_s):
            await output.done.wait()
    except TimeoutError:
        raise TokenError(f"{where}: took longer than {timeout_s:g} s and was ended") from None
    finally:
        await _end(transport, output)
    if output.overflow:
        raise TokenError(f"{where}: printed more than {_MAX_OUTPUT_BYTES} bytes and was ended, expected a token")
    status = transport.get_returncode()
    if status != 0:
        raise TokenError(f"{where}: ended with status {status}{_error_hint(bytes(output.stderr))}")
    return bytes(output.stdout)


def _nobody(name: str, error: Exception) -> None:
    """Whoever awaits the task hears of it."""


async def _end(transport: asyncio.SubprocessTransport, output: _Output) -> None:
    """Kill what is left of a command and free its pipes."""
    try:
        if not output.done.is_set() or output.overflow:
            _kill(transport)
            # Its end must be seen for the transport to be complete; SIGKILL is prompt unless the kernel holds the process.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_KILL_WAIT_S):
                    await output.exited.wait()
    finally:
        transport.close()


def _kill(transport: asyncio.SubprocessTransport) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            transport.kill()
        else:
            # The group keeps the leader's number for as long as a member of it runs, also after the leader's own end.
            os.killpg(transport.get_pid(), signal.SIGKILL)


def _error_hint(stderr: bytes) -> str:
    """Return the last line a command wrote to its standard error, without anything that could be a token."""
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    if not lines:
        return ""
    masked = _LONG_WORD.sub("…", lines[-1])[:_MAX_ERROR_CHARS]
    return f": {masked!a}"
