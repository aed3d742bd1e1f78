"""Start-up with 20 deployments: seconds from the command to an answered request, CPU seconds and resident memory by then.

The targets are 0.8 s and 80 MiB. A process that shares its cores with others waits for them, which is no cost of its own: the CPU
time is what compares between machines and days. Below the figures: which imports the time goes into, and what is left for the
configuration and the listening. Linux only, for the figures come from ``/proc``.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

RUNS = 5
DEPLOYMENTS = 20
TARGET_S = 0.8
TARGET_MIB = 80
# Packages of the import profile that are told; the rest is too small to matter.
LISTED = 14
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start."""

    wall_s: float
    cpu_s: float
    rss_mib: float
    peak_mib: float


def config() -> dict[str, object]:
    """Twenty deployments in four groups, with what such files have: orders, weights, fallbacks, keys."""
    providers = ("openai/gpt-realtime", "xai/grok-voice-latest", "azure/voice", "openai_compatible/local")
    entries = [
        {
            "model_name": f"voice-{index % 4}",
            "litellm_params": {
                "model": providers[index % 4],
                "api_base": f"http://127.0.0.1:{9000 + index}/v1",
                "api_key": f"not-a-real-key-{index}",
                "weight": 1 + index % 3,
                "order": index // 8,
            },
            "model_info": {"mode": "realtime"},
        }
        for index in range(DEPLOYMENTS)
    ]
    return {
        "model_list": entries,
        "router_settings": {"fallbacks": [{"voice-0": ["voice-1"]}, {"voice-1": ["voice-2"]}]},
        "general_settings": {
            "master_key": "rr-0123456789abcdef0123456789abcdef",
            # Each run is ended as soon as it has served; a real one's grace is no part of its start.
            "drain": {"grace_s": 0, "timeout_s": 0},
        },
    }


@contextmanager
def written() -> Iterator[Path]:
    """The configuration as a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(json.dumps(config(), indent=2))
        yield path


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    # proc(5): the command's name stands in brackets and may hold spaces; utime and stime are fields 14 and 15.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int, name: str) -> float:
    """``VmRSS`` or ``VmHWM`` of a process."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def start(path: Path) -> Start:
    """Start the router, connect, measure, end it."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "router", "--config", path, "--port", "0"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"ws://([\d.]+):(\d+)/", line)
        assert found is not None, f"found {line!r}, expected the line with the URL"
        with socket.create_connection((found[1], int(found[2])), timeout=5) as client:
            client.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            assert client.recv(64).startswith(b"HTTP/1.1 200")
        wall_s = time.perf_counter() - began
        return Start(
            wall_s=wall_s,
            cpu_s=cpu_s(process.pid),
            rss_mib=memory_mib(process.pid, "VmRSS"),
            peak_mib=memory_mib(process.pid, "VmHWM"),
        )
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def bare_python_s() -> float:
    """CPU time of an interpreter that does nothing: the least that any Python program takes."""
    before = os.times()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def import_profile() -> list[tuple[str, float]]:
    """Milliseconds of each top-level package's own modules while all that serving needs is imported, the largest first."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import router.cli, router.serve, router.config.loader, uvloop"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    spent: dict[str, float] = {}
    for line in done.stderr.splitlines():
        found = re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", line)
        if found is not None:
            package = found[2].split(".")[0]
            if package in sys.stdlib_module_names:
                package = "standard library"
            spent[package] = spent.get(package, 0.0) + int(found[1]) / 1000
    return sorted(spent.items(), key=lambda item: -item[1])


def row(name: str, values: list[float], *, digits: int, target: float | None = None) -> str:
    """A line of the table: least, median, most, beside the target."""
    shown = "".join(f"{value:10.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    if target is None:
        return f"{name:28}{shown}"
    return f"{name:28}{shown}{target:10.{digits}f}  {'met' if statistics.median(values) <= target else 'MISSED'}"


def main() -> None:
    """Print the figures beside the targets, and the import profile."""
    with written() as path:
        start(path)  # compiles what is not compiled yet, and warms the file cache
        starts = [start(path) for _ in range(RUNS)]
    print(f"{f'{RUNS} starts, {DEPLOYMENTS} deployments':28}{'least':>10}{'median':>10}{'most':>10}{'target':>10}")
    print(row("seconds to an answer", [one.wall_s for one in starts], digits=3, target=TARGET_S))
    print(row("CPU seconds by then", [one.cpu_s for one in starts], digits=3))
    print(row("bare Python, CPU seconds", [bare_python_s() for _ in range(RUNS)], digits=3))
    print(row("MiB resident", [one.rss_mib for one in starts], digits=1, target=TARGET_MIB))
    print(row("MiB resident at the most", [one.peak_mib for one in starts], digits=1))
    profile = import_profile()
    total = sum(spent for _, spent in profile)
    print(f"\nimports, {total:.0f} ms under the profiler:")
    for package, spent in profile[:LISTED]:
        print(f"  {package:24}{spent:8.1f} ms")


if __name__ == "__main__":
    main()
