"""The server of a fleet: ``redis…`` of ``router_settings``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from router.config import ConfigError, FleetSettings, Problem, Secret, load, schema
from tests.unit.config.helpers import ENVIRON, ONE, loaded, problem, problems

H = ("h", 6379)


def fleet(settings: str, **environ: str) -> FleetSettings | None:
    """Load ``router_settings``, given as flow-style YAML."""
    result = loaded(ONE + f"router_settings: {{{settings}}}", **environ)
    assert not result.warnings
    return result.settings.fleet


def refused(settings: str, **environ: str) -> Problem:
    """Load ``router_settings`` that must be refused for one reason."""
    found = problem(ONE + f"router_settings: {{{settings}}}", **environ)
    assert "hush" not in str(found)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that TLS needs."""
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    return tmp_path


def in_folder(folder: Path, settings: str) -> FleetSettings | None:
    """Load ``router_settings`` of a file in a folder."""
    file = folder / "config.yaml"
    file.write_text(ONE + f"router_settings: {{{settings}}}", encoding="utf-8")
    return load(file, environ=ENVIRON).settings.fleet


# --- what is there -------------------------------------------------------------------------------


def test_without_a_key_there_is_no_server() -> None:
    """Also when the environment has LiteLLM's variables: only the file decides."""
    variables = {"REDIS_URL": "redis://h", "REDIS_HOST": "h", "REDIS_PORT": "1", "REDIS_SSL": "true"}
    assert fleet("stagger_s: 1", **variables) is None
    assert fleet("redis: , redis_host: ", **variables) is None


def test_a_variable_of_the_environment_is_taken_when_the_file_names_it() -> None:
    """With numbers and booleans as the text that they are there, and without a line break at its end."""
    assert fleet("redis: os.environ/REDIS_URL", REDIS_URL="redis://h:1/2\n") == FleetSettings(nodes=(("h", 1),), db=2)
    named = "redis_host: os.environ/A, redis_port: os.environ/B, redis_db: os.environ/C, redis_ssl: os.environ/D"
    assert fleet(named, A="h", B="1", C="2", D="True") == FleetSettings(nodes=(("h", 1),), db=2, tls=True)


@pytest.mark.parametrize("key", ["redis", "redis_url"])
def test_a_server_by_its_url(key: str) -> None:
    """Under our name and under LiteLLM's."""
    assert fleet(f"{key}: 'rediss://u:p%40@h:1/2'") == FleetSettings(
        nodes=(("h", 1),), db=2, username="u", password=Secret("p@"), tls=True
    )


def test_a_server_by_its_host() -> None:
    """LiteLLM's keys, numbers as text included."""
    assert fleet("redis_host: h") == FleetSettings(nodes=(H,))
    assert fleet("redis_host: '[::1]'") == FleetSettings(nodes=(("::1", 6379),))
    keys = "redis_host: h, redis_port: '7000', redis_db: 3, redis_ssl: true, redis_username: u, redis_password: 'p w'"
    assert fleet(keys) == FleetSettings(nodes=(("h", 7000),), db=3, tls=True, username="u", password=Secret("p w"))


def test_credentials_beside_a_url() -> None:
    """Each of them where the URL has none, so that it can be written without the password."""
    assert fleet("redis: 'redis://u@h', redis_password: p") == FleetSettings(nodes=(H,), username="u", password=Secret("p"))
    assert fleet("redis: 'redis://:p@h', redis_username: u") == FleetSettings(nodes=(H,), username="u", password=Secret("p"))


def test_credentials_of_the_sentinels() -> None:
    """They have users of their own."""
    keys = "redis: 'redis+sentinel://u:p@h/main', redis_sentinel_username: su, redis_sentinel_password: sp"
    assert fleet(keys) == FleetSettings(
        kind="sentinel",
        nodes=(("h", 26379),),
        service="main",
        username="u",
        password=Secret("p"),
        sentinel_username="su",
        sentinel_password=Secret("sp"),
    )


def test_prefix_and_what_becomes_of_limits() -> None:
    """With any kind of server."""
    built = fleet("redis: 'unix:///run/r', redis_prefix: staging:router, on_redis_loss: Closed")
    assert built == FleetSettings(path="/run/r", prefix="staging:router", on_loss="closed")
    built = fleet(f"redis_host: h, redis_prefix: {'x' * 64}, on_redis_loss: open")
    assert built == FleetSettings(nodes=(H,), prefix="x" * 64)


def test_files_start_from_the_folder_of_the_configuration(folder: Path) -> None:
    """As those of deployments do; absolute names stay."""
    keys = f"redis: 'rediss://h', redis_ca_file: ca.pem, redis_client_cert: {folder}/cert.pem, redis_client_key: key.pem"
    built = in_folder(folder, keys)
    assert built == FleetSettings(
        nodes=(H,),
        tls=True,
        ca_file=str(folder / "ca.pem"),
        client_cert=str(folder / "cert.pem"),
        client_key=str(folder / "key.pem"),
    )
    assert in_folder(folder, "redis_host: h, redis_ssl: true, redis_client_cert: cert.pem") is not None


def test_every_setting_has_its_key() -> None:
    """What the code can be told, a file can."""
    by_url = {"kind", "nodes", "path", "service"}
    spelt = {"tls": "redis_ssl", "on_loss": "on_redis_loss"}
    for name in FleetSettings.__dataclass_fields__:
        assert name in by_url or spelt.get(name, f"redis_{name}") in schema.RouterSettings.model_fields, name


def test_the_server_is_not_of_a_group() -> None:
    """There is one for all of them."""
    assert problem(ONE + "groups: {voice: {redis_host: h}}").path == "groups.voice.redis_host"


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "key", "found"),
    [
        ("redis: 'redis://h', redis_url: 'redis://h'", "redis_url", "redis_url beside redis"),
        ("redis: 'redis://h', redis_host: h", "redis_host", "redis_host beside redis"),
        ("redis_url: 'redis://h', redis_host: h", "redis_host", "redis_host beside redis_url"),
        ("redis: 'redis://h', redis_port: 6379", "redis_port", "redis_port beside redis"),
        ("redis: 'redis://h', redis_db: 0", "redis_db", "redis_db beside redis"),
        ("redis: 'redis://h', redis_ssl: false", "redis_ssl", "redis_ssl beside redis"),
        ("redis: 'redis://u:p@h', redis_username: v", "redis_username", "redis_username beside the user in redis"),
        ("redis_url: 'redis://:hush@h', redis_password: hush", "redis_password", "beside the password in redis_url"),
        ("redis_port: 6379", "redis_port", "redis_port without a server"),
        ("redis_password: hush", "redis_password", "redis_password without a server"),
        ("redis_prefix: x", "redis_prefix", "redis_prefix without a server"),
        ("on_redis_loss: open", "on_redis_loss", "on_redis_loss without a server"),
        ("redis_ca_file: ca.pem", "redis_ca_file", "redis_ca_file without a server"),
        ("redis_port: 1, redis_db: 1, redis_ssl: true", "redis_port", "redis_port and 2 more of its keys without a server"),
        ("redis_host: h, redis_sentinel_password: hush", "redis_sentinel_password", "redis_sentinel_password without sentinels"),
        ("redis: 'redis+cluster://h', redis_sentinel_username: u", "redis_sentinel_username", "without sentinels"),
        ("redis: h", "redis", "no scheme"),
        ("redis: 'redis://:hush@h#'", "redis", "a '#'"),
        ("redis: 'redis://:os.environ/HUSH@h'", "redis", "a variable within a URL"),
        ("redis: 5", "redis", "***"),
        ("redis: {url: hush}", "redis", "a mapping"),
        ("redis: os.environ/NOT_SET", "redis", "variable NOT_SET, which is not set"),
        ("redis_host: os.environ/NOT_SET", "redis_host", "variable NOT_SET, which is not set"),
        ("redis_host: h, redis_password: os.environ/NOT_SET", "redis_password", "variable NOT_SET, which is not set"),
        ("redis_host: os.environ/NOT_SET, redis_port: 1", "redis_host", "variable NOT_SET, which is not set"),
        ("redis_host: 'redis://:hush@h'", "redis_host", "text (***)"),
        ("redis_host: 'h:6379'", "redis_host", "text (***)"),
        ("redis_host: ''", "redis_host", "empty text"),
        ("redis_host: h, redis_port: 0", "redis_port", "0"),
        ("redis_host: h, redis_port: 65536", "redis_port", "65536"),
        ("redis_host: h, redis_port: x", "redis_port", "the text 'x'"),
        ("redis_host: h, redis_db: -1", "redis_db", "-1"),
        ("redis_host: h, redis_db: 2147483648", "redis_db", "2147483648"),
        ("redis_host: h, redis_ssl: 1", "redis_ssl", "1"),
        ("redis_host: h, redis_password: 12345", "redis_password", "***"),
        ("redis_host: h, redis_password: ''", "redis_password", "empty text"),
        ("redis_host: h, redis_password: '${HUSH}'", "redis_password", "text (***)"),
        ("redis_host: h, redis_password: \"hu\\nsh\"", "redis_password", "text (***)"),
        ("redis_host: h, redis_prefix: ''", "redis_prefix", "empty text"),
        ("redis_host: h, redis_prefix: 'a b'", "redis_prefix", "the text 'a b'"),
        ("redis_host: h, redis_prefix: '{a}'", "redis_prefix", "the text '{a}'"),
        ("redis_host: h, redis_prefix: ü", "redis_prefix", "the text 'ü'"),
        (f"redis_host: h, redis_prefix: {'x' * 65}", "redis_prefix", f"the text '{'x' * 65}'"),
        ("redis_host: h, on_redis_loss: shut", "on_redis_loss", "the text 'shut'"),
        ("redis_host: h, on_redis_loss: true", "on_redis_loss", "true"),
    ],
)  # fmt: skip
def test_a_wrong_or_contradicting_key_is_an_error(settings: str, key: str, found: str) -> None:
    """Told once, at its place, naming both where two keys contradict each other, and no value that may be a secret."""
    told = refused(settings)
    assert told.path == f"router_settings.{key}" and found in told.found


@pytest.mark.parametrize(
    ("settings", "key", "found"),
    [
        ("redis: 'redis://h', redis_ca_file: ca.pem", "redis_ca_file", "redis_ca_file without TLS"),
        ("redis_host: h, redis_client_cert: cert.pem", "redis_client_cert", "redis_client_cert without TLS"),
        ("redis: 'unix:///run/r', redis_ca_file: ca.pem", "redis_ca_file", "redis_ca_file without TLS"),
        ("redis: 'rediss://h', redis_client_key: key.pem", "redis_client_key", "redis_client_key without redis_client_cert"),
        ("redis: 'rediss://h', redis_ca_file: no.pem", "redis_ca_file", "the text 'no.pem' for a file that does not exist"),
        ("redis: 'rediss://h', redis_ca_file: .", "redis_ca_file", "the text '.' for a file that cannot be read"),
        ("redis: 'rediss://h', redis_ca_file: ''", "redis_ca_file", "empty text"),
        (
            "redis: 'rediss://h', redis_client_cert: os.environ/NOT_SET, redis_client_key: key.pem",
            "redis_client_cert",
            "variable NOT_SET, which is not set",
        ),
        ("redis_host: h, redis_ssl: 5, redis_ca_file: ca.pem", "redis_ssl", "5"),
        (
            "redis: 'rediss://h', redis_ca_file: os.environ/MASTER_KEY",
            "redis_ca_file",
            "the value of the environment variable MASTER_KEY for a file that does not exist",
        ),
    ],
)
def test_a_wrong_file_is_an_error(folder: Path, settings: str, key: str, found: str) -> None:
    """It is the router's own key, so the file is refused; a consequence of another error is not told."""
    with pytest.raises(ConfigError) as caught:
        in_folder(folder, settings)
    (told,) = caught.value.problems
    assert told.path == f"router_settings.{key}" and found in told.found


def test_all_problems_of_the_server_come_at_once() -> None:
    """One run of ``check`` is enough."""

    def told(settings: str) -> set[str]:
        found = problems(ONE + f"router_settings: {{{settings}}}")
        assert "hush" not in "\n".join(map(str, found))
        return {each.path.removeprefix("router_settings.") for each in found}

    settings = "redis: 'redis://u:p@h', redis_port: 1, redis_db: 2, redis_username: v, redis_password: hush, redis_prefix: '{}'"
    assert told(settings) == {"redis_port", "redis_db", "redis_username", "redis_password", "redis_prefix"}
    settings = "redis: 'redis://:hush/@h', redis_port: 1, redis_ca_file: no.pem, on_redis_loss: no"
    assert told(settings) == {"redis", "redis_port", "redis_ca_file", "on_redis_loss"}
    assert told("redis_host: os.environ/NOT_SET, redis_ca_file: no.pem") == {"redis_host", "redis_ca_file"}


def test_a_file_that_may_not_be_read_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system's refusal is put in words; it is made up, since whoever runs the tests may be allowed everything."""

    def forbid(file: str, mode: int) -> bool:
        return not file.endswith("ca.pem")

    monkeypatch.setattr(os, "access", forbid)
    with pytest.raises(ConfigError, match="cannot be read"):
        in_folder(folder, "redis: 'rediss://h', redis_ca_file: ca.pem")


def test_nothing_shows_the_passwords() -> None:
    """The settings can be printed."""
    built = fleet("redis: 'redis+sentinel://:hush1@h/main', redis_sentinel_password: hush2")
    assert built is not None and built.password == Secret("hush1") and "hush" not in repr(built)
