"""Files that change while they are used: which folders tell of it, and when a change is complete.

Editors replace a file rather than write into it, and Kubernetes swaps a symbolic link two steps away from the name that was given
(``config.yaml`` → ``..data/config.yaml``, ``..data`` → a folder with the date). So folders are watched and not files: each one
in which a step of the name could be replaced.

watchfiles tells at once where the system does (inotify, FSEvents); a look at the files now and then finds what it does not tell,
as on network file systems, or when the system has no watch left to give.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping
from typing import Final

from router.tasks import Tasks

# A look at the files although nothing was told.
LOOK_S: Final = 5.0
# Where nothing can be told, there are only looks.
_LOOK_BLIND_S: Final = 0.5
# A file counts as written when it was the same twice, so long apart ...
SETTLED_S: Final = 0.1
# ... and one that never stops to change is read as it is after this.
MOST_UNSETTLED_S: Final = 2.0
# watchfiles gathers what comes within this many milliseconds.
_GATHER_MS: Final = 50
# Its thread looks several times a second whether it is to end.
_CLOSE_S: Final = 1.0
_MOST_LINKS: Final = 40
_MOST_BYTES: Final = 64 * 1024 * 1024

#: File → what it holds, as a digest; nothing when it cannot be read.
Marks = Mapping[str, bytes]
#: What can be seen of files; it changes with them.
Looks = tuple[tuple[int, ...], ...]
#: Of a file that is not there.
NOTHING: Final = (0,)


def folders(file: str) -> set[str]:
    """Return the folders in which a step of a file's name may be replaced: its own, and that of each symbolic link on the way."""
    found: set[str] = set()
    left = os.path.abspath(file)
    for _ in range(_MOST_LINKS):
        target = _first_link(left, found)
        if target is None:
            break
        left = target
    found.add(os.path.dirname(left))
    return found


def _first_link(path: str, found: set[str]) -> str | None:
    """Return the name with its first symbolic link followed, and note the link's folder; ``None``: there is none."""
    parts = path.split(os.sep)
    for number in range(2, len(parts) + 1):
        prefix = os.sep.join(parts[:number])
        try:
            target = os.readlink(prefix)
        except OSError:  # no link, or nothing there
            continue
        folder = os.path.dirname(prefix)
        found.add(folder)
        return os.path.normpath(os.path.join(folder, target, *parts[number:]))
    return None


def marks_of(files: Iterable[str]) -> Marks:
    """Return what files hold now."""
    return {file: _mark(file) for file in files}


def _mark(file: str) -> bytes:
    try:
        # Whoever opens a pipe takes from it what is meant for its reader.
        if not stat.S_ISREG(os.stat(file).st_mode):
            return b""
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:
            return hashlib.sha256(opened.read(_MOST_BYTES)).digest()
    except OSError:
        return b""


def looks(files: Iterable[str]) -> Looks:
    """Return what can be seen of files without reading them."""
    found: list[tuple[int, ...]] = []
    for file in files:
        try:
            status = os.stat(file)
        except OSError:
            found.append(NOTHING)
        else:
            found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


def vanished(files: Iterable[str], found: Looks, seen: Marks) -> bool:
    """Return whether a file that was there is not: an editor has moved the old one away, and is about to put a new one there.

    Args:
        files: the files.
        found: ``looks`` at them.
        seen: ``marks_of`` them, when they were read last.
    """
    return any(look == NOTHING and seen.get(file, b"") != b"" for file, look in zip(files, found, strict=True))


async def settled(files: Collection[str], *, seen: Marks) -> None:
    """Return when files have stopped to change: what is half written must not be read, for it may be a legal file.

    Args:
        files: the files.
        seen: see ``vanished``.
    """
    loop = asyncio.get_running_loop()
    ends = loop.time() + MOST_UNSETTLED_S
    before = looks(files)
    while loop.time() < ends:
        await asyncio.sleep(SETTLED_S)
        now = looks(files)
        if now == before and not vanished(files, now, seen):
            return
        before = now


async def changes(files: Callable[[], Collection[str]], *, on_blind: Callable[[Exception], None]) -> AsyncGenerator[None, None]:
    """Yield whenever one of the files may have changed, and now and then when not.

    Args:
        files: those that matter now; asked again each time.
        on_blind: told once when the system cannot tell of changes, with the reason.
    """
    told = False
    while True:
        wanted = {folder for file in files() for folder in folders(file)}
        try:
            async with contextlib.aclosing(_told_of(wanted)) as news:
                async for _ in news:
                    yield
                    if {folder for file in files() for folder in folders(file)} != wanted:
                        break
        except Exception as error:  # the system's, or one of watchfiles' own, which it may wrap in a group
            if not told:
                told = True
                on_blind(error)
            await asyncio.sleep(_LOOK_BLIND_S)
            yield


async def _told_of(watched: Collection[str]) -> AsyncGenerator[None, None]:
    # Its import takes as long as everything else of the router's start together: not on the event loop.
    awatch = await asyncio.to_thread(_import_awatch)
    told = awatch(
        *watched,
        watch_filter=None,
        debounce=_GATHER_MS,
        step=_GATHER_MS,
        rust_timeout=round(LOOK_S * 1000),
        yield_on_timeout=True,
        recursive=False,
    )
    async with contextlib.aclosing(told):
        # With its first step, which is one turn of the event loop, the watch stands: it is made before a thread waits for news.
        # What has changed before that nobody tells of, so a look at the files is due.
        tasks = Tasks(on_error=lambda _, error: None)
        first = tasks.spawn(_step(told), name="first step of the watch", expected=(Exception,))
        try:
            await asyncio.sleep(0)
            yield
            await first
        finally:
            await tasks.close(timeout_s=_CLOSE_S)
        yield
        async for _ in told:
            yield


async def _step(told: AsyncGenerator[object, None]) -> None:
    await anext(told, None)


def _import_awatch() -> Callable[..., AsyncGenerator[object, None]]:
    from watchfiles import awatch

    return awatch
