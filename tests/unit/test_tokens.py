"""Entra tokens: where they come from, how long they are used, and what is left when it goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from router.config.settings import Secret
from router.errors import ConnectFailed
from router.tokens import CommandToken, FileToken, TokenError, TokenSources, parse_token, run_command
from tests.unit.providers.helpers import deployment

NOW = 1_700_000_000.0
WAIT_S = 20.0


class Clock:
    """Seconds, moved by hand."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def script(code: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that runs a piece of Python."""
    return (sys.executable, "-c", code, *arguments)


def counting(folder: Path, body: str) -> tuple[str, ...]:
    """Return a command that leaves one file behind for each of its runs, then runs ``body``, which knows the run's ``number``."""
    code = f"import os, sys; number = len(os.listdir(sys.argv[1])); open(f'{{sys.argv[1]}}/{{number}}', 'x').close()\n{body}"
    return script(code, str(folder))


def count(folder: Path) -> int:
    """Return how often a counting command has started."""
    return len(list(folder.iterdir()))


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something is so, or fail."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  # another process makes it so, which no event of this loop tells
            await asyncio.sleep(0.01)


def is_dead(pid: int) -> bool:
    """Whether no process has this id any more."""
    return not is_alive(pid)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads process states from /proc (Linux)")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder for the traces of a command's runs."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
async def make_command() -> AsyncIterator[Callable[..., CommandToken]]:
    """Make command sources that are closed after the test, which fails on what they report."""
    sources: list[CommandToken] = []
    reports: list[tuple[str, Exception]] = []

    def make(argv: tuple[str, ...], **options: Any) -> CommandToken:
        source = CommandToken(argv, on_error=lambda name, error: reports.append((name, error)), **options)
        sources.append(source)
        return source

    yield make
    for source in sources:
        await source.close()
    assert reports == []


# --- what is printed -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "lifetime_s"),
    [
        ("tok", None),
        ("  tok\n", None),
        ("\ufefftok\r\n", None),
        ('{"accessToken": "tok"}', None),
        ('{"access_token": "tok", "expires_in": 3599}', 3599),
        ('{"access_token": "tok", "expires_in": "3599"}', 3599),
        ('{"token": "tok", "expiresOn": "2023-11-14T23:13:20Z"}', 3600),
        (json.dumps({"accessToken": "tok", "expires_on": NOW + 60, "expiresOn": "2001-01-01 00:00:00"}), 60),
        (json.dumps({"accessToken": "tok", "expiresOn": str(datetime.fromtimestamp(NOW + 120))}), 120),
        (json.dumps({"accessToken": "tok", "expiresOn": datetime.fromtimestamp(NOW + 120, UTC).isoformat()}), 120),
        ('{"accessToken": "tok", "expiresOn": "soon"}', None),
        ('{"accessToken": "tok", "expires_in": 1e999}', None),
        ('{"accessToken": "tok", "expires_in": true}', None),
    ],
)
def test_a_token_that_can_be_read(output: str, lifetime_s: float | None) -> None:
    """A bare token, and the JSON of the usual tools with its expiry in any of their spellings."""
    token = parse_token(output.encode(), wall_time_s=NOW)
    assert token.value.reveal() == "tok"
    assert token.lifetime_s == lifetime_s


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b" \n",
        b"two words",
        b"two\nlines",
        b"hunter2\x00",
        b"\xff\xfe",
        "tök".encode(),
        b'{"accessToken": ',
        b"{" * 5000,
        b'{"a":' * 5000,
        b"{}",
        b'{"accessToken": ""}',
        b'{"accessToken": 5}',
        b'{"accessToken": ["hunter2"]}',
        b'{"accessToken": "hunter2 x"}',
        b'{"accessToken": "hunter2", "expires_on": 1}',
        b'{"accessToken": "hunter2", "expires_in": 0}',
        b'{"accessToken": "hunter2", "expires_in": ' + b"9" * 5000 + b"}",
    ],
)
def test_output_that_holds_no_token(output: bytes) -> None:
    """Whatever is no valid token is refused, and not repeated in the message."""
    with pytest.raises(ValueError, match=r"found .*, expected ") as caught:
        parse_token(output, wall_time_s=NOW)
    assert "hunter2" not in str(caught.value)


# --- files ---------------------------------------------------------------------------------------


async def test_a_file_is_read_when_it_changes(tmp_path: Path) -> None:
    """The token follows the file: written again, replaced, and through a link that is changed."""
    first, second, link = tmp_path / "first", tmp_path / "second", tmp_path / "link"
    first.write_text("one\n")
    second.write_text("two\n")
    link.symlink_to(first)
    source = FileToken(str(link))
    assert (await source.token()).reveal() == "one"
    first.write_text("longer\n")
    assert (await source.token()).reveal() == "longer"
    replacement = tmp_path / "replacement"
    replacement.write_text("same-l\n")
    os.replace(replacement, first)
    assert (await source.token()).reveal() == "same-l"
    other = tmp_path / "other"
    other.symlink_to(second)
    os.replace(other, link)
    assert (await source.token()).reveal() == "two"


async def test_a_file_that_did_not_change_is_not_read(tmp_path: Path) -> None:
    """Between changes the content comes from memory, until the upstream refuses it."""
    path = tmp_path / "token"
    path.write_text("one")
    status = path.stat()
    source = FileToken(str(path))
    assert (await source.token()).reveal() == "one"
    path.write_text("two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (await source.token()).reveal() == "one"
    source.invalidate()
    assert (await source.token()).reveal() == "two"


async def test_dials_share_one_look_at_the_file(tmp_path: Path) -> None:
    """Many dials at once read the file once, and one that gives up takes nothing from the others."""
    path = tmp_path / "token"
    path.write_text("one")
    source = FileToken(str(path))
    waiting = [asyncio.create_task(source.token()) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert all(isinstance(result, Secret) and result.reveal() == "one" for result in results[1:])


async def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    """Each message names the file and what is wrong, and the source recovers when the file does."""
    path = tmp_path / "token"
    source = FileToken(str(path))
    with pytest.raises(TokenError, match=r"azure_ad_token_file .*no such file"):
        await source.token()
    path.mkdir()
    with pytest.raises(TokenError, match="regular file"):
        await source.token()
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(TokenError, match="regular file"):
        await source.token()
    path.unlink()
    path.write_text("hunter2 hunter2")
    for _ in range(2):
        with pytest.raises(TokenError, match="no token") as caught:
            await source.token()
        assert "hunter2" not in str(caught.value)
    path.write_text("x" * 70_000)
    with pytest.raises(TokenError, match="more than 65536 bytes"):
        await source.token()
    path.write_text("good")
    assert (await source.token()).reveal() == "good"


# --- commands ------------------------------------------------------------------------------------


async def test_a_command_runs_once_for_all(runs: Path, make_command: Callable[..., CommandToken]) -> None:
    """Dials that wait together share one run, and later ones its token."""
    source = make_command(counting(runs, "print(f'tok{number}')"))
    results = await asyncio.gather(*(source.token() for _ in range(10)))
    assert {result.reveal() for result in results} == {"tok0"}
    assert (await source.token()).reveal() == "tok0"
    assert count(runs) == 1


async def test_a_token_is_renewed_before_it_expires(runs: Path, make_command: Callable[..., CommandToken]) -> None:
    """Near its end a token is still handed out while the next one is fetched; past it, dials wait."""
    clock = Clock()
    body = "import json; print(json.dumps({'accessToken': f'tok{number}', 'expires_in': 3600}))"
    source = make_command(counting(runs, body), clock=clock)
    assert (await source.token()).reveal() == "tok0"
    clock.now = 3_299.0
    assert (await source.token()).reveal() == "tok0"
    assert count(runs) == 1
    clock.now = 3_301.0
    assert (await source.token()).reveal() == "tok0"

    # Past its end, dials wait: for the renewal that is under way, or for one more.
    await eventually(lambda: count(runs) == 2)
    clock.now = 3_599.0
    assert (await source.token()).reveal() == "tok1"
    clock.now += 3_599.0
    assert (await source.token()).reveal() == "tok2"


async def test_a_token_of_unknown_life(runs: Path, make_command: Callable[..., CommandToken]) -> None:
    """A bare token is used for five minutes at the most."""
    clock = Clock()
    source = make_command(counting(runs, "print(f'tok{number}')"), clock=clock)
    assert (await source.token()).reveal() == "tok0"
    clock.now = 301.0
    assert (await source.token()).reveal() == "tok1"


async def test_a_renewal_that_fails_leaves_the_old_token(runs: Path, make_command: Callable[..., CommandToken]) -> None:
    """While a token is valid, a command that fails costs nobody a dial, and is not run for each of them."""
    clock = Clock()
    source = make_command(counting(runs, "sys.exit(3) if number else print('tok')"), clock=clock)
    assert (await source.token()).reveal() == "tok"
    clock.now = 250.0
    for _ in range(3):
        assert (await source.token()).reveal() == "tok"
    await eventually(lambda: count(runs) == 2)
    clock.now = 400.0
    with pytest.raises(TokenError, match="status 3"):
        await source.token()


async def test_a_failure_stands_for_a_moment(runs: Path, make_command: Callable[..., CommandToken]) -> None:
    """A command that fails is not run again for every dial, but soon after."""
    clock = Clock()
    source = make_command(counting(runs, "print('tok') if number else sys.exit(3)"), clock=clock)
    for _ in range(3):
        with pytest.raises(TokenError, match="status 3"):
            await source.token()
    assert count(runs) == 1
    clock.now = 2.5
    assert (await source.token()).reveal() == "tok"


async def test_a_command_that_runs_ahead(runs: Path) -> None:
    """Deployments that are prefetched have their token, or its run under way, at the first dial."""
    sources = TokenSources(on_error=lambda name, error: None)
    settings = deployment("azure", azure_ad_token_command=counting(runs, "print(f'tok{number}')"))
    sources.prefetch(deployment("azure"))
    sources.prefetch(settings)
    sources.prefetch(settings)
    await eventually(lambda: count(runs) == 1)
    assert await sources.token(settings) == "tok0"
    sources.prefetch(settings)
    assert await sources.token(settings) == "tok0"
    await sources.close()
    assert count(runs) == 1


async def test_a_refused_token_is_fetched_anew(runs: Path, make_command: Callable[..., CommandToken]) -> None:
    """After the upstream has refused a token the next dial gets another one."""
    source = make_command(counting(runs, "print(f'tok{number}')"))
    assert (await source.token()).reveal() == "tok0"
    source.invalidate()
    assert (await source.token()).reveal() == "tok1"


async def test_a_dial_that_gives_up_leaves_the_run_to_the_next(runs: Path, make_command: Callable[..., CommandToken]) -> None:
    """A slow command is not started over for each impatient dial."""
    gate = runs.parent / "gate"
    body = f"import time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\nprint('tok')"
    source = make_command(counting(runs, body))
    dial = asyncio.create_task(source.token())
    await eventually(lambda: any(runs.iterdir()))
    dial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dial
    waiting = asyncio.create_task(source.token())
    gate.touch()
    assert (await asyncio.wait_for(waiting, WAIT_S)).reveal() == "tok"
    assert count(runs) == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("/nonexistent/command",), "cannot be started: no such file"),
        (("/",), "cannot be started: permission denied"),
        (("a\0b",), "cannot be started"),
        (script("raise SystemExit(7)"), "ended with status 7$"),
        (script("import sys; sys.exit('ERROR: Please run az login')"), r"status 1: 'ERROR: Please run az login'"),
        (script("import sys; sys.exit('bad token ' + 'hunter2' * 9)"), r"status 1: 'bad token \\u2026'"),
        (script("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), "status -9"),
        (script("print('x' * 100_000)"), "more than 65536 bytes"),
        (script("pass"), "found nothing, expected a token"),
        (script("print('hunter2 hunter2')"), "found text that is no token"),
    ],
)
async def test_commands_that_fail(argv: tuple[str, ...], words: str, make_command: Callable[..., CommandToken]) -> None:
    """Each message names the command and what happened, and holds nothing that could be a token."""
    with pytest.raises(ConnectFailed, match=words) as caught:
        await make_command(argv).token()
    assert str(caught.value).startswith("azure_ad_token_command")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("how", ["timeout", "cancel", "close", "flood"])
@needs_proc
async def test_nothing_is_left_running(how: str, tmp_path: Path, make_command: Callable[..., CommandToken]) -> None:
    """A command that must end is killed with the children it has started, on a timeout, a cancellation and a flood alike."""
    pids = tmp_path / "pids"
    flood = "head -c 100000 /dev/zero | tr '\\0' x;" if how == "flood" else ""
    code = f'sleep 600 & echo "$$ $!" > "$1.new"; mv "$1.new" "$1"; {flood} wait'
    argv = ("/bin/sh", "-c", code, "sh", str(pids))
    if how == "close":
        source = make_command(argv)
        dial = asyncio.create_task(source.token())
        await eventually(pids.exists)
        await source.close()
        with pytest.raises(TokenError, match="closing"):
            await dial
    elif how == "cancel":
        run = asyncio.create_task(run_command(argv, timeout_s=WAIT_S))
        await eventually(pids.exists)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    else:
        # The shell needs a moment to write its numbers before the limit may strike.
        limit_s = 2.0 if how == "timeout" else WAIT_S
        with pytest.raises(TokenError, match=r"took longer than 2 s|more than 65536"):
            await run_command(argv, timeout_s=limit_s)
    for pid in pids.read_text().split():
        await eventually(partial(is_dead, int(pid)))


def held_up() -> None:
    """Keep the event loop from everything: a command that was started gets further than the loop knows."""
    time.sleep(0.02)


@needs_proc
async def test_a_start_that_is_cancelled_leaves_nothing_either(tmp_path: Path) -> None:
    """Whenever it is cancelled: a child that holds the pipe is not waited for, and does not stay behind."""
    for turns in range(12):
        pids = tmp_path / str(turns)
        code = 'sleep 600 & echo "$$ $!" > "$1.new"; mv "$1.new" "$1"; wait'
        run = asyncio.create_task(run_command(("/bin/sh", "-c", code, "sh", str(pids)), timeout_s=WAIT_S))
        for _ in range(turns):
            # Turns of the loop between the start's steps.
            await asyncio.sleep(0)
        held_up()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(run, WAIT_S)
        if pids.exists():
            for pid in pids.read_text().split():
                await eventually(partial(is_dead, int(pid)))


@needs_proc
async def test_a_child_that_keeps_the_pipe(tmp_path: Path) -> None:
    """A command that ends and leaves a child holding its output is not waited for beyond the limit, and the child is killed."""
    pid_file = tmp_path / "pid"
    argv = ("/bin/sh", "-c", 'sleep 600 & echo $! > "$1"; echo tok', "sh", str(pid_file))
    with pytest.raises(TokenError, match="took longer"):
        await run_command(argv, timeout_s=2.0)
    child = int(pid_file.read_text())
    await eventually(lambda: not is_alive(child))


async def test_a_command_gets_no_input(make_command: Callable[..., CommandToken]) -> None:
    """A command that asks something reads the end of the file instead of the router's terminal."""
    source = make_command(script("import sys; print('tok' + sys.stdin.read())"))
    assert (await source.token()).reveal() == "tok"


def test_on_uvloop(runs: Path) -> None:
    """The same works on the event loop that the server uses."""
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not built for every platform")

    async def main() -> None:
        output = await run_command(script("print('tok')"), timeout_s=WAIT_S)
        assert output == b"tok\n"
        with pytest.raises(TokenError, match="took longer"):
            await run_command(script("import time; time.sleep(600)"), timeout_s=0.5)
        with pytest.raises(TokenError, match="status 7: 'why'"):
            await run_command(script("import sys; print('why', file=sys.stderr); sys.exit(7)"), timeout_s=WAIT_S)
        with pytest.raises(TokenError, match="cannot be started"):
            await run_command(("/nonexistent/command",), timeout_s=WAIT_S)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


# --- all of a dialer's ---------------------------------------------------------------------------


async def test_the_sources_of_a_dialer(tmp_path: Path, runs: Path) -> None:
    """Each deployment gets the token of its settings, and equal commands run once for all deployments."""
    path = tmp_path / "token"
    path.write_text("from-file")
    argv = counting(runs, "print(f'tok{number}')")
    reports: list[str] = []
    sources = TokenSources(on_error=lambda name, error: reports.append(name))
    assert await sources.token(deployment("azure")) is None
    assert await sources.token(deployment("azure", azure_ad_token=Secret("given"))) == "given"
    assert await sources.token(deployment("azure", azure_ad_token_file=str(path))) == "from-file"
    assert await sources.token(deployment("azure", id="a", azure_ad_token_command=argv)) == "tok0"
    assert await sources.token(deployment("azure", id="b", azure_ad_token_command=argv)) == "tok0"
    sources.invalidate(deployment("azure", azure_ad_token_command=argv))
    sources.invalidate(deployment("azure"))
    assert await sources.token(deployment("azure", id="b", azure_ad_token_command=argv)) == "tok1"
    await sources.close()
    assert reports == []


def test_nothing_prints_a_token() -> None:
    """A token that was read does not show itself."""
    assert "hunter2" not in repr(parse_token(b"hunter2", wall_time_s=time.time()))
