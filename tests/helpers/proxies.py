"""Real reverse proxies in front of routers, started from the samples in ``deploy/``: what users copy is what is tested.

    site = Site(folder=tmp_path, port=free_port(), routers=(4000, 4001), pair=authority.issue())
    with running(nginx(site)) as proxy:
        await proxy.accepting()
        async with connect(f"wss://localhost:{site.port}/v1/realtime?model=voice", ssl=context):
            ...

A sample is changed in the places that every user changes (addresses, certificate) and by a test's own ``edits``. Each text that
is to be replaced must be there, so that neither a sample nor a test can drift away from the other unseen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.helpers.parts import require
from tests.helpers.ports import free_port
from tests.helpers.processes import environment, written
from tests.helpers.running import UPSTREAM_KEY, config_of, deployment_of
from tests.helpers.tls import HOST, Pair

DEPLOY = Path(__file__).parents[2] / "deploy"
# Longest wait for anything that must happen; only a fault reaches it.
PATIENCE_S = 30.0
_STOP_TIMEOUT_S = 5.0
_POLL_S = 0.02

Edits = Mapping[str, str]
NO_EDITS: Edits = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What a proxy is told.

    Attributes:
        folder: for its files.
        port: where it listens, on 127.0.0.1 and ``localhost``.
        routers: ports of the two routers, on 127.0.0.1.
        pair: certificate for ``localhost``, and its key.
    """

    folder: Path
    port: int
    routers: tuple[int, int]
    pair: Pair

    def write(self, name: str, text: str) -> Path:
        """Write a file; return its path."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program to run.

    Attributes:
        name: for messages.
        arguments: with the program itself.
        check: the same program, looking at the same configuration only.
        folder: where it runs and logs.
        port: that it listens on.
        environ: more of its environment.
    """

    name: str
    arguments: Sequence[str]
    check: Sequence[str]
    folder: Path
    port: int
    environ: Mapping[str, str] = field(default_factory=dict)


def edited(text: str, edits: Edits, *, name: str = "the text") -> str:
    """Return ``text`` with every key of ``edits`` replaced by its value.

    Raises:
        AssertionError: a key is not there.
    """
    for old, new in edits.items():
        assert old in text, f"{name} has no {old!r} any more"
        text = text.replace(old, new)
    return text


def _sample(path: str, places: Edits, edits: Edits) -> str:
    text = edited((DEPLOY / path).read_text(encoding="utf-8"), edits, name=path)
    return edited(text, places, name=path)


def _routers(site: Site) -> dict[str, str]:
    first, second = site.routers
    return {"10.0.0.11:4000": f"127.0.0.1:{first}", "10.0.0.12:4000": f"127.0.0.1:{second}"}


# --- the four -----------------------------------------------------------------------------------

_NGINX_FOLDERS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def nginx(site: Site, edits: Edits = NO_EDITS) -> Command:
    """Nginx with ``deploy/nginx/realtime-router.conf``, inside the frame that a distribution's nginx.conf is."""
    places = {
        **_routers(site),
        "listen 443 ssl": f"listen 127.0.0.1:{site.port} ssl",
        "/etc/nginx/tls/voice.example.com.pem": str(site.pair.certificate),
        "/etc/nginx/tls/voice.example.com.key": str(site.pair.key),
    }
    return nginx_with(site, "http", site.write("site.conf", _sample("nginx/realtime-router.conf", places, edits)))


def nginx_stream(site: Site, edits: Edits = NO_EDITS) -> Command:
    """Nginx with ``deploy/nginx/realtime-router-stream.conf``, which sends a PROXY header of version 1."""
    places = {
        **_routers(site),
        "listen 443 ssl": f"listen 127.0.0.1:{site.port} ssl",
        "/etc/nginx/tls/voice.example.com.pem": str(site.pair.certificate),
        "/etc/nginx/tls/voice.example.com.key": str(site.pair.key),
    }
    return nginx_with(
        site, "stream", site.write("site.conf", _sample("nginx/realtime-router-stream.conf", places, edits))
    )


def nginx_with(site: Site, kind: str, included: Path) -> Command:
    """Nginx whose ``http`` or ``stream`` block includes a file."""
    folders = "".join(f"    {name}_temp_path {site.folder / name};\n" for name in _NGINX_FOLDERS) if kind == "http" else ""
    log = f"    access_log {site.folder / 'access.log'};\n" if kind == "http" else ""
    frame = (
        "daemon off;\nmaster_process off;\nworker_processes 1;\n"
        f"pid {site.folder / 'nginx.pid'};\nerror_log stderr error;\nevents {{ worker_connections 1024; }}\n"
        f"{kind} {{\n{folders}{log}    include {included};\n}}\n"
    )
    arguments = (require("nginx"), "-p", str(site.folder), "-e", "stderr", "-c", str(site.write("nginx.conf", frame)))
    return Command(name="nginx", arguments=arguments, check=(*arguments, "-t"), folder=site.folder, port=site.port)


def haproxy(site: Site, edits: Edits = NO_EDITS) -> Command:
    """HAProxy with ``deploy/haproxy/haproxy.cfg``."""
    pem = site.write("site.pem", site.pair.certificate.read_text() + site.pair.key.read_text())
    places = {
        **_routers(site),
        # More needs descriptors that a test's machine may not give.
        "maxconn 20000": "maxconn 2000",
        "bind :443 ssl": f"bind 127.0.0.1:{site.port} ssl",
        "/etc/haproxy/tls/voice.example.com.pem": str(pem),
    }
    program = require("haproxy")
    config = str(site.write("haproxy.cfg", _sample("haproxy/haproxy.cfg", places, edits)))
    return Command(
        name="haproxy",
        arguments=(program, "-db", "-f", config),
        check=(program, "-c", "-f", config),
        folder=site.folder,
        port=site.port,
        # The wheel's program finds the libraries beside it by this alone; a system's own program does without.
        environ={"LD_LIBRARY_PATH": str(Path(program).parent / "lib")},
    )


def caddy(site: Site, edits: Edits = NO_EDITS) -> Command:
    """Caddy with ``deploy/caddy/Caddyfile``, without its admin endpoint and its search for a certificate."""
    places = {
        **_routers(site),
        "\nvoice.example.com {": f"\nhttps://{HOST}:{site.port} {{\n\tbind 127.0.0.1",
        "\t#tls /etc/caddy/tls/voice.example.com.pem /etc/caddy/tls/voice.example.com.key": (
            f"\ttls {site.pair.certificate} {site.pair.key}"
        ),
        "\n{\n\tservers {": "\n{\n\tadmin off\n\tauto_https disable_redirects\n\tservers {",
    }
    program = require("caddy")
    config = str(site.write("Caddyfile", _sample("caddy/Caddyfile", places, edits)))
    return Command(
        name="caddy",
        arguments=(program, "run", "--adapter", "caddyfile", "--config", config),
        check=(program, "validate", "--adapter", "caddyfile", "--config", config),
        folder=site.folder,
        port=site.port,
        environ={"HOME": str(site.folder), "XDG_DATA_HOME": str(site.folder), "XDG_CONFIG_HOME": str(site.folder)},
    )


def envoy(site: Site, edits: Edits = NO_EDITS) -> Command:
    """Envoy with ``deploy/envoy/envoy.yaml``."""
    first, second = site.routers
    places = {
        "{ address: 0.0.0.0, port_value: 443 }": f"{{ address: 127.0.0.1, port_value: {site.port} }}",
        "{ address: 10.0.0.11, port_value: 4000 }": f"{{ address: 127.0.0.1, port_value: {first} }}",
        "{ address: 10.0.0.12, port_value: 4000 }": f"{{ address: 127.0.0.1, port_value: {second} }}",
        "/etc/envoy/tls/voice.example.com.pem": str(site.pair.certificate),
        "/etc/envoy/tls/voice.example.com.key": str(site.pair.key),
    }
    config = str(site.write("envoy.yaml", _sample("envoy/envoy.yaml", places, edits)))
    program = require("envoy")
    common = ("-c", config, "--concurrency", "1", "--log-level", "error", "--disable-hot-restart")
    return Command(
        name="envoy",
        arguments=(program, *common),
        check=(program, "--mode", "validate", *common),
        folder=site.folder,
        port=site.port,
    )


Recipe = Callable[..., Command]
PROXIES: Mapping[str, Recipe] = {"nginx": nginx, "haproxy": haproxy, "caddy": caddy, "envoy": envoy}


# --- changes that docs/behind-a-proxy.md names ---------------------------------------------------

# The proxy takes the prefix /voice away.
PREFIX_STRIPPED: Mapping[str, Edits] = {
    "nginx": {
        "    location / {": "    location /voice/ {",
        "proxy_pass http://realtime_routers;": "proxy_pass http://realtime_routers/;",
    },
    "haproxy": {
        "    option forwardfor\n": "    option forwardfor\n    http-request replace-path /voice(/.*) \\1\n",
    },
    "caddy": {"\treverse_proxy 10.0.0.11": "\turi strip_prefix /voice\n\treverse_proxy 10.0.0.11"},
    "envoy": {
        "- match: { prefix: / }\n                          route:\n": (
            "- match: { prefix: /voice/ }\n                          route:\n                            prefix_rewrite: /\n"
        ),
    },
}
# The proxy passes it on, and general_settings.root_path is /voice: no change but for the health checks.
PREFIX_PASSED_ON: Mapping[str, Edits] = {
    "nginx": {},
    "haproxy": {"GET /health/ready": "GET /voice/health/ready"},
    "caddy": {"health_uri /health/ready": "health_uri /voice/health/ready"},
    "envoy": {"path: /health/ready": "path: /voice/health/ready"},
}


# Another proxy stands in front of the proxy. Caddy alone drops what it is told by somebody that it does not know.
SECOND_PROXY: Mapping[str, Edits] = {
    "nginx": {},
    "haproxy": {},
    "caddy": {"\t\tprotocols h1\n": "\t\tprotocols h1\n\t\ttrusted_proxies static 127.0.0.8/32\n"},
    "envoy": {},
}
# The proxy says who the client is in a PROXY header, of version 2; nginx does so by a sample of its own, of version 1.
PROXY_PROTOCOL: Mapping[str, Edits] = {
    "haproxy": {
        "    default-server check inter 1s fall 2 rise 2\n": (
            "    default-server check inter 1s fall 2 rise 2 send-proxy-v2 check-send-proxy\n"
        ),
        "    option forwardfor\n": "",
    },
    "caddy": {"\t\t\tversions 1.1\n": "\t\t\tversions 1.1\n\t\t\tproxy_protocol v2\n"},
    "envoy": {
        "      type: STATIC\n": """      type: STATIC
      transport_socket:
        name: envoy.transport_sockets.upstream_proxy_protocol
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport
          config: { version: V2 }
          transport_socket:
            name: envoy.transport_sockets.raw_buffer
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer
""",
    },
}


# --- time-outs ------------------------------------------------------------------------------------

# Idle ones as they are when nobody sets them; HAProxy has no such, so it gets those of the file that distributions ship.
DEFAULT_TIMEOUTS: Mapping[str, Edits] = {
    "nginx": {"        proxy_read_timeout 90s;\n        proxy_send_timeout 90s;\n": ""},
    "haproxy": {
        "    timeout client 90s\n    timeout server 90s\n    timeout tunnel 90s\n": (
            "    timeout client 50s\n    timeout server 50s\n"
        ),
    },
    "caddy": {},
    "envoy": {"                stream_idle_timeout: 90s\n": ""},
}
# The same cut short; Caddy has none.
SHORT_TIMEOUTS: Mapping[str, Edits] = {
    "nginx": {"90s": "3s"},
    "haproxy": {"90s": "3s"},
    "caddy": {},
    "envoy": {"90s": "3s"},
}


# --- running ------------------------------------------------------------------------------------


class Program:
    """A program that was started.

    Attributes:
        name: for messages.
        port: that it listens on.
        output: what it prints.
    """

    def __init__(self, name: str, port: int, process: subprocess.Popen[bytes], output: Path) -> None:
        self.name = name
        self.port = port
        self.output = output
        self._process = process

    @property
    def printed(self) -> str:
        """Everything so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def check_alive(self) -> None:
        """Do nothing while it runs.

        Raises:
            AssertionError: it ended; with what it printed last.
        """
        code = self._process.poll()
        assert code is None, f"{self.name} ended with exit code {code}:\n{self.printed[-3000:]}"

    async def accepting(self) -> None:
        """Wait until it accepts connections.

        Raises:
            AssertionError: it ended, or does not in time.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.check_alive()
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.transport.abort()
                return
            assert time.monotonic() < deadline, f"{self.name} does not listen:\n{self.printed[-3000:]}"
            await asyncio.sleep(_POLL_S)

    def ask_to_end(self) -> None:
        """Send it SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        """Wait for its end; return its exit code.

        Raises:
            AssertionError: it does not end in time.
        """
        deadline = time.monotonic() + PATIENCE_S
        while (code := self._process.poll()) is None:
            assert time.monotonic() < deadline, f"{self.name} goes on:\n{self.printed[-3000:]}"
            await asyncio.sleep(_POLL_S)
        return code

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it, and wait for its end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()


@contextmanager
def started(
    name: str, arguments: Sequence[str], *, folder: Path, port: int, environ: Mapping[str, str] | None = None
) -> Iterator[Program]:
    """Run a program until the block ends; what it prints goes to a file in ``folder``."""
    output = folder / f"{name}-{port}.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            arguments,
            env=environment(**(environ or {})),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    program = Program(name, port, process, output)
    try:
        yield program
    finally:
        program.stop()


def running(command: Command) -> contextlib.AbstractContextManager[Program]:
    """Run a proxy until the block ends."""
    return started(
        command.name, command.arguments, folder=command.folder, port=command.port, environ=command.environ
    )


def complaint(command: Command) -> str:
    """What a proxy's own check of its configuration finds wrong; empty: nothing."""
    done = subprocess.run(
        command.check,
        env=environment(**command.environ),
        cwd=command.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
    )
    return "" if done.returncode == 0 else f"exit code {done.returncode}:\n{done.stdout}"


def python_module(*arguments: str) -> list[str]:
    """The command line of one of the router's own programs."""
    return [sys.executable, "-m", "router", *arguments]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backends:
    """Two routers, and the providers that they dial.

    The groups: ``voice`` talks; ``echo`` returns every message; the provider of ``limited`` answers 429; ``down`` has a
    deployment that refuses connections.

    Attributes:
        routers: the two.
        voice: the provider of ``voice``.
        others: those of ``echo`` and ``limited``.
    """

    routers: tuple[Program, Program]
    voice: Program
    others: tuple[Program, ...]

    @property
    def ports(self) -> tuple[int, int]:
        """The routers'."""
        first, second = self.routers
        return first.port, second.port

    async def accepting(self) -> None:
        """Wait until all of them accept connections."""
        for program in (self.voice, *self.others, *self.routers):
            await program.accepting()

    async def record(self, session: str) -> dict[str, Any]:
        """Wait for the record of a session that one of the routers wrote, and return it.

        Raises:
            AssertionError: there is none in time.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for router in self.routers:
                # The line that is being written comes next time.
                for line in router.printed.rpartition("\n")[0].splitlines():
                    if session in line and (entry := json.loads(line))["event"] in ("session ended", "session not served"):
                        return dict(entry)
            assert time.monotonic() < deadline, f"no record of {session} in time"
            await asyncio.sleep(_POLL_S)


@contextmanager
def backends(
    folder: Path,
    *,
    key: str,
    reply: str,
    general: Mapping[str, Any] | None = None,
    router: Mapping[str, Any] | None = None,
) -> Iterator[Backends]:
    """Start the two routers and their providers, all of them processes, until the block ends.

    Args:
        folder: for their files.
        key: the routers' master key.
        reply: what the provider says.
        general: more of ``general_settings``.
        router: more of ``router_settings``.
    """
    voice, echo, limited, *ports = (free_port() for _ in range(5))
    config = config_of(
        deployment_of(f"http://127.0.0.1:{voice}/v1", id="voice"),
        deployment_of(f"http://127.0.0.1:{limited}/v1", id="limited", model="limited"),
        deployment_of(f"http://127.0.0.1:{echo}/v1", id="echo", model="echo", provider="openai_compatible", ready="handshake"),
        deployment_of(f"http://127.0.0.1:{free_port()}/v1", id="down", model="down"),
        general={"master_key": key, "trusted_proxies": ["127.0.0.1"], "log_format": "json", **(general or {})},
        router={"num_retries": 0, **(router or {})},
    )
    path = str(written(folder, config))

    def simulate(port: int, *more: str) -> contextlib.AbstractContextManager[Program]:
        arguments = ("simulate", "--port", str(port), "--pace", "fast", "--api-key", UPSTREAM_KEY, *more)
        return started("simulator", python_module(*arguments), folder=folder, port=port)

    with contextlib.ExitStack() as stack:
        talking = stack.enter_context(simulate(voice, "--reply", reply))
        others = (
            stack.enter_context(simulate(echo, "--dialect", "echo")),
            stack.enter_context(simulate(limited, "--fault", "status=429,retry_after=60")),
        )
        first, second = (
            stack.enter_context(
                started("router", python_module("--config", path, "--port", str(port)), folder=folder, port=port)
            )
            for port in ports
        )
        yield Backends(routers=(first, second), voice=talking, others=others)


