"""One measurement of one proxy: open sessions, warm up, look at the counters twice, check that nothing was lost, close."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.relay import cpu
from benchmarks.relay.load import Load, Session
from benchmarks.relay.pacer import Pacer
from benchmarks.relay.upstream import Provider
from benchmarks.relay.wire import Verdict

# Handshakes at once while set-up is measured.
_SETUP_WORKERS: Final = 8
_US: Final = 1e6

Values = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The size of every measurement.

    Attributes:
        seconds: of a window.
        warmup_s: before each.
        sessions: in bursts and at real-time pace.
        memory_sessions: open at once while memory is measured.
        settle_s: before memory is looked at: sweeps, timers and allocators come to rest.
    """

    seconds: float
    warmup_s: float
    sessions: int
    memory_sessions: int
    settle_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is measured.

    Attributes:
        pids: of the proxy; none for the control without one.
        upstream_port: of the provider behind it.
        load: its clients.
    """

    name: str
    pids: Sequence[int]
    upstream_port: int
    load: Load


class Window:
    """What has been counted when a window began, to be subtracted at its end."""

    def __init__(self, subject: Subject, cores: cpu.Cores, sessions: Sequence[Session]) -> None:
        self._subject = subject
        self._cores = cores
        self._sessions = sessions
        self._usage = cpu.usage(subject.pids)
        self._core_s = cpu.core_busy_s(cores.proxy)
        self._own_s = time.process_time()
        self._began = time.perf_counter()
        self._messages = self._received()

    def _received(self) -> int:
        return sum(
            session.received + (session.connection.received if session.connection is not None else 0)
            for session in self._sessions
        )

    def end(self, *, count: Callable[[], int] | None = None) -> tuple[Values, int]:
        """Return seconds, CPU and disturbance, and how many messages (or, of ``count``) there were."""
        messages = self._received() - self._messages if count is None else count()
        seconds = time.perf_counter() - self._began
        own_s = time.process_time() - self._own_s
        core_s = cpu.core_busy_s(self._cores.proxy) - self._core_s
        values = {"seconds": seconds, "messages": float(messages), "load_busy": own_s / seconds}
        if self._subject.pids:
            cpu_s, user_share = cpu.usage(self._subject.pids).since(self._usage)
            values |= {"cpu_s": cpu_s, "user_share": user_share, "busy": cpu_s / seconds}
            if self._cores.proxy != self._cores.load:
                # Of the proxies' core, by anybody else; with one core only it would be the load.
                values["others"] = max(0.0, core_s - cpu_s) / seconds
        return values, messages


class Windows:
    """The measurements, over one provider.

    Args:
        provider: the other end of every session.
        plan: their size.
        cores: who runs where.
        verdict: raises the first fault.
    """

    def __init__(self, provider: Provider, plan: Plan, *, cores: cpu.Cores, verdict: Verdict) -> None:
        self._provider = provider
        self._plan = plan
        self._cores = cores
        self._verdict = verdict

    async def measure(self, measurement: str, subject: Subject) -> Values:
        """Run one measurement by its name."""
        how: dict[str, Callable[[Subject], Awaitable[Values]]] = {
            "bursts": lambda subject: self._bursts(subject, in_flight=1),
            "bursts8": lambda subject: self._bursts(subject, in_flight=8),
            "paced": self._paced,
            "setup": self._setup,
            "memory": self._memory,
        }
        # What the last one left behind is collected now; during a window no collector disturbs.
        gc.collect()
        gc.disable()
        try:
            return await how[measurement](subject)
        finally:
            gc.enable()

    async def _bursts(self, subject: Subject, *, in_flight: int) -> Values:
        """Closed loop: each answer sends the next event."""
        sessions = await subject.load.open("echo", self._plan.sessions, in_flight=in_flight)
        for session in sessions:
            session.start_echo()
        await self._verdict.sleep(self._plan.warmup_s)
        window = Window(subject, self._cores, sessions)
        await self._verdict.sleep(self._plan.seconds)
        values, messages = window.end()
        await subject.load.finish(sessions)
        return _per_message(values, messages)

    async def _paced(self, subject: Subject) -> Values:
        """Real-time pace, every session with its own phase."""
        sessions = await subject.load.open("paced", self._plan.sessions)
        pacer = Pacer()
        try:
            rng = subject.load.rng
            now = time.perf_counter_ns()
            for session in sessions:
                assert session.connection is not None
                session.start_pacing(pacer, now + rng.randrange(20_000_000))
                session.connection.start_pacing(pacer, now + rng.randrange(66_000_000))
            await self._verdict.sleep(self._plan.warmup_s)
            window = Window(subject, self._cores, sessions)
            pacer.late_ns.clear()
            for session in sessions:
                session.down_ns.clear()
                assert session.connection is not None
                session.connection.up_ns.clear()
            await self._verdict.sleep(self._plan.seconds)
            values, messages = window.end()
            up = [ns / 1e3 for session in sessions if session.connection is not None for ns in session.connection.up_ns]
            down = [ns / 1e3 for session in sessions for ns in session.down_ns]
            late = [ns / 1e3 for ns in pacer.late_ns]
            await subject.load.finish(sessions)
        finally:
            pacer.close()
        for name, times_us in (("up", up), ("down", down), ("way", up + down), ("late", late)):
            values |= percentiles(name, times_us)
        return _per_message(values, messages)

    async def _setup(self, subject: Subject) -> Values:
        """Sessions that are opened, get ``session.created`` and are closed, a few at a time."""
        load = subject.load
        done: list[Session] = []
        stop = False

        async def work() -> None:
            while not stop:
                session = await load.dial("setup")
                await session.ended
                done.append(session)

        async def all_workers() -> None:
            nonlocal stop
            workers = [asyncio.create_task(work()) for _ in range(_SETUP_WORKERS)]
            try:
                await asyncio.sleep(self._plan.warmup_s)
                begin()
                await asyncio.sleep(self._plan.seconds)
                finish()
            finally:
                stop = True
                await asyncio.gather(*workers)

        window: Window | None = None
        handshakes = (0, 0)
        values: Values = {}
        ready_us: list[float] = []

        def begin() -> None:
            nonlocal window, handshakes
            done.clear()
            window = Window(subject, self._cores, ())
            handshakes = self._provider.handshakes(subject.upstream_port)

        def finish() -> None:
            assert window is not None
            measured, sessions = window.end(count=lambda: len(done))
            values.update(measured)
            ready_us.extend((session.created_ns - session.began_ns) / 1e3 for session in done)
            values["sessions_per_s"] = sessions / measured["seconds"]
            if sessions and "cpu_s" in measured:
                values["cpu_us"] = measured["cpu_s"] / sessions * _US
            full, resumed = self._provider.handshakes(subject.upstream_port)
            full, resumed = full - handshakes[0], resumed - handshakes[1]
            if full + resumed:
                values["resumed"] = resumed / (full + resumed)

        limit = self._plan.warmup_s + self._plan.seconds + load.patience_s
        await self._verdict.race(all_workers(), within_s=limit, what="opening and closing sessions")
        return values | percentiles("ready", ready_us)

    async def _memory(self, subject: Subject) -> Values:
        """Open sessions that have had one turn and say nothing."""
        load = subject.load
        # What the first sessions load and allocate once belongs to the base.
        await load.finish(await load.open("turn", max(8, self._plan.memory_sessions // 50)))
        await self._verdict.sleep(self._plan.settle_s)
        base = cpu.pss_bytes(subject.pids)
        sessions = await load.open("turn", self._plan.memory_sessions)
        await self._verdict.sleep(self._plan.settle_s)
        full = cpu.pss_bytes(subject.pids)
        await load.finish(sessions)
        return {"kib_per_session": (full - base) / 1024 / len(sessions), "base_mib": base / 2**20}


def _per_message(values: Values, messages: int) -> Values:
    values["messages_per_s"] = messages / values["seconds"]
    if messages and "cpu_s" in values:
        values["cpu_us"] = values["cpu_s"] / messages * _US
    return values


def percentiles(name: str, times_us: list[float]) -> Values:
    """The 50th and the 99th under ``name``; nothing where there are fewer than two."""
    if len(times_us) < 2:
        return {}
    cuts = statistics.quantiles(times_us, n=100, method="inclusive")
    return {f"{name}_p50_us": cuts[49], f"{name}_p99_us": cuts[98]}
