"""One command of ``ctl``: ask, show, and end with the right code."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from rich.console import Console

from router.config.source import printable
from router.ctl.client import Client, CtlError, connected
from router.ctl.tables import TABLES, Document
from router.ctl.target import Target

Request = Callable[[Client], Awaitable[dict[str, Any]]]
T = TypeVar("T")

# Where nobody looks at columns, nothing is cut off.
_WIDTH_OF_FILES: Final = 400


def console(*, width: int = _WIDTH_OF_FILES) -> Console:
    """Standard output; as wide as the terminal, or as ``width`` where it is none."""
    made = Console(highlight=False, markup=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = width
    return made


def rendered(make: Callable[[Document], T], document: Document) -> T:
    """Return what is made of a document, such as a table.

    Raises:
        CtlError: it is not what this version knows.
    """
    try:
        return make(document)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        found = printable(f"{type(error).__name__}: {error}", 200)
        raise CtlError(f"the router's answer is not understood ({found}): it may be of another version") from None


def run(target: Target, table: str, request: Request, *, every_s: float | None = None) -> int:
    """Do one command. Returns the exit code: 0 done, 1 refused or unreachable, 2 wrong usage.

    Args:
        target: which router.
        table: a name in ``TABLES``.
        request: what to ask of it.
        every_s: seconds after which it is asked again, for ever; ``None``: once.
    """
    return guarded(_run(target, table, request, every_s))


def guarded(work: Coroutine[Any, Any, None]) -> int:
    """Run something to its end, and return the exit code."""
    try:
        asyncio.run(work)
        sys.stdout.flush()
    except CtlError as error:
        print(error, file=sys.stderr)
        return 2 if error.usage else 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        # Somebody has seen enough.
        return 0
    except BrokenPipeError:
        # Whoever read it has seen enough. What is left in the buffer must not be tried again when the interpreter ends.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return 0


async def _run(target: Target, table: str, request: Request, every_s: float | None) -> None:
    out = console()
    async with connected(target.url, key=target.key, ca_file=target.ca_file) as client:
        if every_s is None:
            document = await request(client)
            if target.as_json:
                print(json.dumps(document, indent=2))
            else:
                out.print(rendered(TABLES[table], document))
            return
        await _watch(client, out, target, table, request, every_s)


async def _watch(client: Client, out: Console, target: Target, table: str, request: Request, every_s: float) -> None:
    from rich.live import Live

    # The first answer decides whether there is anything to watch.
    document = await request(client)
    if target.as_json or not out.is_terminal:
        while True:
            if target.as_json:
                print(json.dumps(document), flush=True)
            else:
                out.print(rendered(TABLES[table], document))
            await asyncio.sleep(every_s)
            document = await request(client)
    with Live(console=out, screen=True, auto_refresh=False) as live:
        while True:
            live.update(rendered(TABLES[table], document), refresh=True)
            await asyncio.sleep(every_s)
            document = await request(client)
