"""What ``deploy/`` offers to be copied: valid where a checker is at hand, and in step with the code's own defaults.

The proxies' own checks of their samples are in ``tests/integration/test_behind_proxies.py``, which also runs them.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from router._version import __version__
from router.config import load_text
from router.config.settings import DrainSettings, RelaySettings, ServerSettings
from tests.helpers.parts import require
from tests.helpers.ports import free_port
from tests.helpers.proxies import (
    PREFIX_PASSED_ON,
    PREFIX_STRIPPED,
    PROXY_PROTOCOL,
    Site,
    complaint,
    edited,
    nginx_with,
)
from tests.helpers.running import config_of, running_router
from tests.helpers.tls import Pair

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCS = ROOT / "docs"
# grace + time-out + what it takes to end the rest.
STOP_S = DrainSettings().grace_s + DrainSettings().timeout_s + 10
PROXY_SAMPLES = (
    "nginx/realtime-router.conf",
    "nginx/realtime-router-stream.conf",
    "haproxy/haproxy.cfg",
    "caddy/Caddyfile",
    "envoy/envoy.yaml",
)
UNITS = ("realtime-router@.service", "realtime-router.socket")
KUBERNETES = ("namespace", "deployment", "service", "poddisruptionbudget")
# The oldest that is looked after, and the newest that there is a schema of.
KUBERNETES_VERSIONS = ("1.30.0", "1.37.0")


def text_of(path: str) -> str:
    """A file of ``deploy/``."""
    return (DEPLOY / path).read_text(encoding="utf-8")


def documents(path: str) -> list[Any]:
    """The YAML documents of a file of ``deploy/``."""
    return [document for document in yaml.safe_load_all(text_of(path)) if document is not None]


# --- all of it -----------------------------------------------------------------------------------


def test_every_sample_is_named_in_the_documentation() -> None:
    """Nobody has to find a file by chance; and a page names no file that is gone."""
    pages = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("install.md", "behind-a-proxy.md"))
    for path in (*PROXY_SAMPLES, *(f"systemd/{unit}" for unit in UNITS), "docker/Dockerfile", "compose.yaml", "kubernetes"):
        assert f"deploy/{path}" in pages, path
    for named in re.findall(r"\]\(\.\./(deploy/[^)#]+)\)", pages):
        assert (ROOT / named).exists(), named


@pytest.mark.parametrize("path", PROXY_SAMPLES)
def test_a_proxy_waits_longer_than_the_router(path: str) -> None:
    """Its time-outs are above the pings' time-out, so that a dead side is the router's finding; the port is the router's."""
    seconds = [float(found) for found in re.findall(r"(?<!\d)(\d+)s\b", text_of(path)) if float(found) > 30]
    if path != "caddy/Caddyfile":
        assert seconds
    assert min(seconds, default=90.0) > RelaySettings().ping_timeout_s
    assert RelaySettings().ping_interval_s < RelaySettings().ping_timeout_s
    ports = re.findall(r"10\.0\.0\.1\d(?::|, port_value: )(\d+)", text_of(path))
    assert {int(port) for port in ports} == {ServerSettings().listen.port}
    assert f"{RelaySettings().ping_timeout_s:.0f} s" in text_of(path) or path == "caddy/Caddyfile"


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("haproxy/haproxy.cfg", r"inter (\d+)s fall (\d+)"),
        ("caddy/Caddyfile", r"health_interval (\d+)s\n.*\n\s*health_fails (\d+)"),
        ("envoy/envoy.yaml", r" interval: (\d+)s\n.*\n\s*unhealthy_threshold: (\d+)"),
    ],
)
def test_a_proxy_notices_a_router_that_leaves_within_its_grace(path: str, pattern: str) -> None:
    """Interval × failed looks, and a last look that takes its second, are below ``drain.grace_s``."""
    found = re.search(pattern, text_of(path))
    assert found
    assert int(found[1]) * int(found[2]) + 1 < DrainSettings().grace_s


@pytest.mark.parametrize(
    "edits", [PREFIX_STRIPPED, PREFIX_PASSED_ON, PROXY_PROTOCOL], ids=["prefix taken", "prefix passed on", "PROXY protocol"]
)
def test_the_documentation_names_the_changes_to_samples(edits: dict[str, dict[str, str]]) -> None:
    """Each line that the tests put into a sample stands in docs/behind-a-proxy.md."""
    page = (DOCS / "behind-a-proxy.md").read_text(encoding="utf-8")
    for kind, changes in edits.items():
        for old, new in changes.items():
            for line in set(new.splitlines()) - set(old.splitlines()):
                # The rest of a line that is longer in the sample.
                assert line.strip().removesuffix(" {").removesuffix("10.0.0.11") in page, (kind, line)


# --- systemd -------------------------------------------------------------------------------------


def unit(path: str) -> dict[str, list[str]]:
    """Key → its values, whatever their section."""
    found: dict[str, list[str]] = {}
    for line in text_of(f"systemd/{path}").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_systemd_waits_for_a_drain() -> None:
    """``TimeoutStopSec`` is grace + time-out + 10, and no signal but the one to the main process."""
    service = unit("realtime-router@.service")
    assert service["TimeoutStopSec"] == [f"{STOP_S:.0f}"]
    assert service["KillMode"] == ["mixed"]
    assert unit("realtime-router.socket")["ListenStream"] == [f"127.0.0.1:{ServerSettings().listen.port}"]


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units as they lie in /etc/systemd/system, with programs that are on this machine."""
    program = shutil.which("realtime-router", path=str(Path(sys.executable).parent))
    assert program is not None
    for name in UNITS:
        text = text_of(f"systemd/{name}").replace("/opt/realtime-router/bin/realtime-router", program)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "realtime-router@.service.d").mkdir()
    shutil.copy(DEPLOY / "systemd/realtime-router@.service.d-socket.conf", tmp_path / "realtime-router@.service.d/socket.conf")
    (tmp_path / "realtime-router@a.service").symlink_to("realtime-router@.service")
    return tmp_path


def verify(folder: Path) -> str:
    """What ``systemd-analyze verify`` complains of in the units of a folder."""
    done = subprocess.run(
        [require("systemd"), "verify", "--man=no", folder / "realtime-router@a.service", folder / "realtime-router.socket"],
        env={"SYSTEMD_UNIT_PATH": f"{folder}:", "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    # Other units of the machine are none of ours.
    own = [line for line in done.stderr.splitlines() if "realtime-router" in line]
    return "\n".join(own) or ("" if done.returncode == 0 else done.stderr)


def test_systemd_finds_nothing_wrong(units: Path) -> None:
    """``systemd-analyze verify`` has nothing to say, with the sockets and without."""
    assert verify(units) == ""
    (units / "realtime-router@.service.d/socket.conf").unlink()
    assert verify(units) == ""


def test_the_check_of_units_can_fail(units: Path) -> None:
    """A key that systemd does not know is complained of."""
    path = units / "realtime-router@.service"
    path.write_text(edited(path.read_text(), {"KillMode=": "KillMood="}))
    assert "KillMood" in verify(units)


def test_the_unit_is_hardened(units: Path) -> None:
    """``systemd-analyze security`` counts its exposure as low (0 is none, 10 all)."""
    done = subprocess.run(
        [require("systemd"), "security", "--offline=yes", "--threshold=20", units / "realtime-router@.service"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "Overall exposure level" in done.stdout


# --- the image -----------------------------------------------------------------------------------


def instructions() -> Iterator[tuple[str, str]]:
    """The Dockerfile's instructions: word and rest, continued lines joined."""
    lines = [line for line in text_of("docker/Dockerfile").splitlines() if not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def test_the_image_is_locked_small_and_not_root() -> None:
    """Every dependency comes with a hash, the last stage has no build tool, and it runs as a number that is not 0."""
    stages = [rest for word, rest in instructions() if word == "FROM"]
    assert len(stages) == 2
    final = list(instructions())[[index for index, (word, _) in enumerate(instructions()) if word == "FROM"][-1] :]
    assert not [rest for word, rest in final if word == "RUN"]
    assert [rest for word, rest in final if word == "USER"] == ["10001:10001"]
    assert [rest for word, rest in final if word == "STOPSIGNAL"] == ["SIGTERM"]
    installs = [part for word, rest in instructions() if word == "RUN" for part in rest.split("&&") if " install " in part]
    assert all("--require-hashes" in part or "--no-index" in part or "apt-get" in part for part in installs)
    # Everything that the build copies is let through, and is there.
    copied = [source for word, rest in instructions() if word == "COPY" and "--from" not in rest for source in rest.split()[:-1]]
    let_through = {line[1:] for line in text_of("docker/Dockerfile.dockerignore").splitlines() if line.startswith("!")}
    assert set(copied) == let_through
    assert all((ROOT / source).exists() for source in copied)


async def test_the_health_check_of_the_image() -> None:
    """Its command ends with 0 while a router is ready, and with something else when it drains or nobody listens."""
    (check,) = [rest for word, rest in instructions() if word == "HEALTHCHECK"]
    command = json.loads(check.partition("CMD ")[2])
    assert command[:2] == ["python", "-c"]

    async def ended(port: int) -> int:
        source = edited(command[2], {":4000/health/ready'": f":{port}/health/ready'"})
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", source, stderr=asyncio.subprocess.DEVNULL)
        async with asyncio.timeout(60):
            return await process.wait()

    async with running_router(config_of("http://127.0.0.1:1/v1")) as router:
        assert await ended(router.port) == 0
        router.engine.stopping = True
        assert await ended(router.port) != 0
    assert await ended(free_port()) != 0


def test_hadolint_finds_nothing_wrong() -> None:
    """The Dockerfile passes its linter."""
    done = subprocess.run(
        [require("hadolint"), DEPLOY / "docker/Dockerfile"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "")


# --- compose -------------------------------------------------------------------------------------


def test_compose_keeps_to_its_specification() -> None:
    """The file has the form that the Compose Specification's schema asks for, and a wrong one is refused by it."""
    schema = json.loads(Path(require("compose-schema")).read_text(encoding="utf-8"))
    (document,) = documents("compose.yaml")
    # It has no types; the package with the schema brings it.
    validator = import_module("jsonschema.validators").validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(document)] == []
    document["services"]["redis"]["imagee"] = "redis"
    assert not validator.is_valid(document)


def test_compose_has_everything_in_its_place() -> None:
    """Every file that is mounted is there, and the parts are two routers, Redis, simulator, nginx, Prometheus and Grafana."""
    (document,) = documents("compose.yaml")
    services = document["services"]
    assert services.keys() == {"router-1", "router-2", "simulator", "redis", "nginx", "prometheus", "grafana"}
    for service in services.values():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            # What is in grafana/ belongs to the dashboards' own tests.
            if source.startswith(("./", "../deploy")):
                assert (DEPLOY / source).exists(), source
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    for name in ("router-1", "router-2"):
        assert services[name]["stop_grace_period"] == f"{STOP_S:.0f}s"
    # Nothing is open to the network by default.
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)


def test_the_routers_of_compose_start_with_no_key_of_a_provider() -> None:
    """Their configuration is valid with the one variable that the compose file sets, and without a warning."""
    (document,) = documents("compose.yaml")
    default = re.fullmatch(r"\$\{ROUTER_KEY:-(.+)\}", document["services"]["router-1"]["environment"]["ROUTER_KEY"])
    assert default
    loaded = load_text(text_of("compose/router/config.yaml"), environ={"ROUTER_KEY": default[1]})
    assert [str(warning) for warning in loaded.warnings] == []
    assert loaded.settings.server.listen.port == 4000
    operations = loaded.settings.server.ops_listen
    assert operations is not None
    (scrape,) = yaml.safe_load(text_of("compose/prometheus.yml"))["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"router-1:{operations.port}", f"router-2:{operations.port}"]}]
    assert scrape["job_name"].startswith("realtime-router")


def test_nginx_of_compose_is_the_sample_without_tls(tmp_path: Path) -> None:
    """It differs in addresses and TLS alone, and nginx finds nothing wrong with it."""
    sample, own = text_of("nginx/realtime-router.conf"), text_of("compose/nginx.conf")
    for text in ("upstream realtime_routers", "    location / {"):
        expected = sample[sample.index(text) :].replace("10.0.0.11", "router-1").replace("10.0.0.12", "router-2")
        end = expected.index("server {\n") if text.startswith("upstream") else len(expected)
        assert expected[:end] in own
    included = tmp_path / "default.conf"
    edits = {"router-1:4000": "127.0.0.1:1", "router-2:4000": "127.0.0.1:2", "listen 4000": f"listen 127.0.0.1:{free_port()}"}
    included.write_text(edited(own, edits))
    place = Site(folder=tmp_path, port=1, routers=(1, 2), pair=Pair(tmp_path, tmp_path))
    assert complaint(nginx_with(place, "http", included)) == ""


# --- Kubernetes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("name", KUBERNETES)
def test_manifests_keep_to_the_schemas_of_kubernetes(name: str, version: str) -> None:
    """Each object has the form of its kind, with no field that the kind does not know; a misspelt field is refused."""
    folder = Path(require("kubernetes-schemas")) / f"v{version}-local-strict"
    definitions = json.loads((folder / "_definitions.json").read_text(encoding="utf-8"))
    # Without types; the package with the schemas brings both.
    jsonschema, referencing = import_module("jsonschema"), import_module("referencing")
    registry = referencing.Resource.from_contents(definitions) @ referencing.Registry()
    for document in documents(f"kubernetes/{name}.yaml"):
        group, _, api = document["apiVersion"].rpartition("/")
        suffix = f"-{group.partition('.')[0]}" if group else ""
        schema = json.loads((folder / f"{document['kind'].lower()}{suffix}-{api}.json").read_text(encoding="utf-8"))
        validator = jsonschema.Draft202012Validator(schema, registry=registry)
        assert [f"{list(error.path)}: {error.message}" for error in validator.iter_errors(document)] == []
        document["metadata"]["labelz"] = {}
        assert not validator.is_valid(document)


def deployment() -> dict[str, Any]:
    """The Deployment's pod specification."""
    (document,) = documents("kubernetes/deployment.yaml")
    pod = document["spec"]["template"]["spec"]
    assert isinstance(pod, dict)
    return pod


def test_kubernetes_waits_for_a_drain() -> None:
    """The grace period is preStop + grace + time-out + 10, by the drain that the configuration sets."""
    (container,) = deployment()["containers"]
    sleep = re.search(r"time\.sleep\((\d+)\)", container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert sleep
    drain = yaml.safe_load(text_of("kubernetes/config.yaml"))["general_settings"]["drain"]
    assert drain == {"grace_s": DrainSettings().grace_s, "timeout_s": DrainSettings().timeout_s}
    assert deployment()["terminationGracePeriodSeconds"] == int(sleep[1]) + STOP_S


def test_kubernetes_pods_are_restricted() -> None:
    """What the namespace's ``restricted`` level asks for, and a root file system that is read only."""
    pod = deployment()
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False


def test_kubernetes_files_fit_each_other() -> None:
    """Names, ports, mounts and probes lead to each other; the configuration is valid where it is mounted."""
    (kustomization,) = documents("kubernetes/kustomization.yaml")
    for name in kustomization["resources"]:
        assert documents(f"kubernetes/{name}")
    (config_map,), (secret,) = kustomization["configMapGenerator"], kustomization["secretGenerator"]
    assert kustomization["images"][0]["newTag"] == __version__
    pod = deployment()
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["config"]["configMap"]["name"] == config_map["name"]
    assert volumes["secrets"]["secret"]["secretName"] == secret["name"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert container["args"] == ["--config", f"{mounts['config']}/{config_map['files'][0]}"]

    text = text_of("kubernetes/config.yaml")
    named = re.findall(r"file:(\S+)", text)
    assert sorted(named) == sorted(f"{mounts['secrets']}/{Path(path).name}" for path in secret["files"])
    # Read where they will be mounted; here they are in the folder.
    here = edited(text, {mounts["secrets"]: str(DEPLOY / "kubernetes/secrets")})
    server = load_text(here).settings.server
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert server.ops_listen is not None
    assert ports == {"clients": server.listen.port, "operations": server.ops_listen.port}
    clients, operations = documents("kubernetes/service.yaml")
    (monitor,) = documents("kubernetes/servicemonitor.yaml")
    labels = monitor["spec"]["selector"]["matchLabels"]
    assert labels.items() <= operations["metadata"]["labels"].items()
    assert not labels.items() <= clients["metadata"]["labels"].items()
    assert [one["port"] for one in monitor["spec"]["endpoints"]] == [one["name"] for one in operations["spec"]["ports"]]
    for service in (clients, operations):
        assert service["spec"]["selector"] == {"app.kubernetes.io/name": "realtime-router"}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports.keys()
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        assert container[probe]["httpGet"]["port"] in ports
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"] == "/health/live"
