"""A run: proxies started, rounds, every measurement of every proxy in random order, one at a time."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import resource
import secrets
import signal
import ssl
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks.relay import certificates, peers, report
from benchmarks.relay.certificates import Certificates
from benchmarks.relay.cpu import Cores, tree
from benchmarks.relay.load import Load
from benchmarks.relay.peers import DIRECT, RECIPES, ROUTER, ROUTER_ACCEL, Place, Proxy, Recipe, Unavailable
from benchmarks.relay.report import Result
from benchmarks.relay.upstream import Provider
from benchmarks.relay.windows import Plan, Subject, Windows
from benchmarks.relay.wire import Fault, Verdict
from tests.helpers.ports import free_port

# What ``--only`` may name → the measurements.
PARTS: Final[dict[str, tuple[str, ...]]] = {
    "bursts": ("bursts", "bursts8"),
    "paced": ("paced",),
    "setup": ("setup",),
    "memory": ("memory",),
}
_FULL: Final[dict[str, Any]] = {
    "rounds": 5,
    "seconds": 2.0,
    "warmup": 0.5,
    "sessions": 40,
    "memory_sessions": 1000,
    "settle": 1.0,
}
_QUICK: Final[dict[str, Any]] = {
    "rounds": 1,
    "seconds": 0.4,
    "warmup": 0.1,
    "sessions": 4,
    "memory_sessions": 20,
    "settle": 0.2,
}
# How long the router may take to have counted the last session.
COUNTED_TIMEOUT_S: Final = 5.0
_APPENDS: Final = re.compile(
    rb'^realtime_router_events_total\{[^}]*type="input_audio_buffer\.append"[^}]*\} ([0-9.e+]+)$', re.MULTILINE
)


class UsageError(Exception):
    """The options ask for what does not exist."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the options.

    Raises: UsageError: one names nothing that exists.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks relay", description="The relay beside other proxies.")
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--seconds", type=float, help="of a window; default 2")
    parser.add_argument("--warmup", type=float, help="seconds before each window; default 0.5")
    parser.add_argument("--sessions", type=int, help="in bursts and at real-time pace; default 40")
    parser.add_argument("--memory-sessions", type=int, help="open at once while memory is measured; default 1000")
    parser.add_argument("--settle", type=float, help="seconds before memory is looked at; default 1")
    parser.add_argument("--patience", type=float, default=15.0, help="seconds to wait for what must come; default 15")
    parser.add_argument("--peers", help=f"none, or of {','.join(RECIPES)}, which is the default; direct is always there")
    parser.add_argument("--only", help=f"default: {','.join(PARTS)}")
    parser.add_argument("--tls", choices=("off", "on", "both"), default="both", help="towards the provider; default both")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every window and the summary there")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the windows; default 1")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works; the figures mean nothing")
    parser.add_argument(
        "--extra",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="one more proxy; {port} {scheme} {upstream_port} {client_key} {upstream_key} {ca_file} {folder} are filled in",
    )
    options = parser.parse_args(arguments)
    for name, value in (_QUICK if options.quick else _FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
        elif getattr(options, name) <= 0:
            raise UsageError(f"--{name.replace('_', '-')}: found {getattr(options, name)}, expected more than 0")
    options.only = _names("--only", options.only, PARTS)
    options.asked = options.peers is not None
    options.peers = [] if options.peers == "none" else _names("--peers", options.peers, RECIPES)
    options.recipes = {name: RECIPES[name] for name in options.peers}
    for extra in options.extra:
        name, equals, command = extra.partition("=")
        if not equals or not name or name in options.recipes or name == DIRECT:
            raise UsageError(f"--extra: found {extra!r}, expected a new NAME=COMMAND")
        options.recipes[name] = peers.other(command)
    return options


def _names(option: str, value: str | None, known: dict[str, Any]) -> list[str]:
    names = list(known) if value is None else [name for name in value.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"{option}: found {', '.join(unknown)}, expected some of {', '.join(known)}")
    if not names:
        raise UsageError(f"{option}: found nothing, expected some of {', '.join(known)}")
    return list(dict.fromkeys(names))


class Bench:
    """One run's provider, proxies and results."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.results: list[Result] = []
        self.missing: dict[str, str] = {}
        self._options = options
        self._folder = folder
        self._rng = random.Random(options.seed)
        self._client_key = secrets.token_hex(32)
        self._upstream_key = secrets.token_hex(32)
        self._verdict = Verdict()
        asyncio.get_running_loop().set_exception_handler(self._verdict.loop_error)
        self._provider = Provider(key=self._upstream_key, verdict=self._verdict)
        self._cores = Cores.here()
        self._plan = Plan(
            seconds=options.seconds,
            warmup_s=options.warmup,
            sessions=options.sessions,
            memory_sessions=options.memory_sessions,
            settle_s=options.settle,
        )
        self._windows = Windows(self._provider, self._plan, cores=self._cores, verdict=self._verdict)
        self._certificates: Certificates = certificates.make(folder)
        self._proxies: dict[tuple[bool, str], tuple[Proxy, Load]] = {}
        self._direct: dict[bool, tuple[int, Load]] = {}

    async def run(self) -> None:
        """Measure everything.

        Raises:
            Fault: something did not arrive as it was sent.
            Unavailable: a proxy does not run any more, or one that was asked for is not there.
        """
        os.sched_setaffinity(0, {self._cores.load})
        modes = {"off": (False,), "on": (True,), "both": (False, True)}[self._options.tls]
        try:
            for tls in modes:
                await self._start_all(tls)
            for number in range(1, self._options.rounds + 1):
                began = time.monotonic()
                for tls in modes:
                    await self._round(number, tls)
                _say(f"round {number} of {self._options.rounds}: {time.monotonic() - began:.0f} s")
            for (_, name), (proxy, load) in self._proxies.items():
                await self.check_counts(name, proxy.port, load.appends)
        finally:
            for proxy, _ in self._proxies.values():
                proxy.stop()
            await self._provider.close()

    async def _start_all(self, tls: bool) -> None:
        port = await self._provider.listen(self._server_tls(tls))
        context = self._certificates.client_context() if tls else None
        self._direct[tls] = (port, self._load(port, key=self._upstream_key, tls=context))
        for name, recipe in self._options.recipes.items():
            if name in self.missing:
                continue
            try:
                await self._start(tls, name, recipe)
            except Unavailable as error:
                if self._options.asked or name not in RECIPES or name == ROUTER:
                    raise
                self._proxies.pop((tls, name), None)
                self.missing[name] = str(error)
                _say(f"without {name}: {error}")

    async def _start(self, tls: bool, name: str, recipe: Recipe) -> None:
        upstream_port = await self._provider.listen(self._server_tls(tls))
        place = Place(
            folder=self._folder / f"{name}-{'tls' if tls else 'plain'}",
            port=free_port(),
            upstream_port=upstream_port,
            client_key=self._client_key,
            upstream_key=self._upstream_key,
            ca_file=self._certificates.ca_file if tls else None,
        )
        proxy = peers.spawn(name, recipe, place, core=self._cores.proxy)
        self._proxies[tls, name] = (proxy, self._load(proxy.port, key=self._client_key))
        await proxy.accepting()

    def _server_tls(self, tls: bool) -> ssl.SSLContext | None:
        return self._certificates.server_context() if tls else None

    def _load(self, port: int, *, key: str, tls: ssl.SSLContext | None = None) -> Load:
        return Load(
            self._provider,
            port=port,
            key=key,
            tls=tls,
            verdict=self._verdict,
            rng=self._rng,
            patience_s=self._options.patience,
        )

    async def _round(self, number: int, tls: bool) -> None:
        measurements = [name for part in self._options.only for name in PARTS[part]]
        self._rng.shuffle(measurements)
        for measurement in measurements:
            # All proxies one after the other in each measurement, for the ratio between two of them is what counts.
            names = [name for mode, name in self._proxies if mode is tls]
            if measurement != "memory":
                names.append(DIRECT)
            self._rng.shuffle(names)
            for name in names:
                if measurement == "memory":
                    await self._restart(tls, name)
                values = await self._measure(measurement, tls, name)
                self.results.append(Result(number, tls, measurement, name, values))

    async def _measure(self, measurement: str, tls: bool, name: str) -> dict[str, float]:
        if name == DIRECT:
            port, load = self._direct[tls]
            return await self._windows.measure(measurement, Subject(name=name, pids=(), upstream_port=port, load=load))
        proxy, load = self._proxies[tls, name]
        if (complaint := proxy.complaint) is not None:
            raise Fault(complaint)
        subject = Subject(name=name, pids=tree(proxy.pid), upstream_port=proxy.upstream_port, load=load)
        try:
            return await self._windows.measure(measurement, subject)
        except Fault as fault:
            where = f"{name}, {measurement}, {'TLS' if tls else 'no TLS'} upstream: {fault}"
            raise Fault(f"{where}\n{proxy.complaint}" if proxy.complaint else where) from None

    async def _restart(self, tls: bool, name: str) -> None:
        """Memory that a process once had is not given back, so the next measurement of it needs a new process."""
        proxy, load = self._proxies[tls, name]
        await self.check_counts(name, proxy.port, load.appends)
        proxy.stop()
        await self._start(tls, name, self._options.recipes[name])

    async def check_counts(self, name: str, port: int, appends: int) -> None:
        """What is measured of the router includes its accounting: it must have counted every event of audio.

        Raises: Fault: it has not.
        """
        if name not in (ROUTER, ROUTER_ACCEL):
            return
        deadline = time.monotonic() + COUNTED_TIMEOUT_S
        while (counted := await asyncio.to_thread(_counted, port)) != appends:
            if time.monotonic() > deadline:
                raise Fault(f"{name}: its metrics count {counted:g} events of audio, {appends} were sent")
            await asyncio.sleep(0.05)


def _counted(port: int) -> float:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=COUNTED_TIMEOUT_S) as answer:
        return sum(float(value) for value in _APPENDS.findall(answer.read()))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the tables, write the JSON. Returns 0; 1 after a fault; 2 for options that cannot be followed; 130
    and 143 when a signal ended it."""
    if not sys.platform.startswith("linux"):
        _say(f"found {sys.platform}, expected linux: what a process costs is read from /proc")
        return 2
    try:
        options = parse(arguments)
    except UsageError as error:
        _say(str(error))
        return 2
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    try:
        with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder, asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(_main(options, Path(folder)))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM


async def _main(options: argparse.Namespace, folder: Path) -> int:
    bench = Bench(options, folder)
    task = asyncio.current_task()
    assert task is not None
    # The proxies must not outlive the run.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    code, fault = 0, None
    try:
        await bench.run()
    except Fault as error:
        code, fault = 1, str(error)
    except Unavailable as error:
        _say(str(error))
        return 2
    if options.json is not None:
        shown = {name: getattr(options, name) for name in (*_FULL, "only", "tls", "seed", "quick")}
        shown["peers"] = list(options.recipes)
        report.write_json(options.json, bench.results, options=shown, missing=bench.missing, fault=fault)
    if fault is not None:
        _say(f"FAULT: {fault}")
    else:
        print(report.tables(bench.results))
    return code
