"""What ``listen`` needs beyond an address: a certificate that can be used, and somebody whose PROXY header is believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from router.config import ConfigError, ListenTlsSettings, load
from router.config.settings import ServerSettings
from tests.helpers.tls import Authority
from tests.unit.config.helpers import ENVIRON, ONE, loaded, problem, problems

KEY = "master_key: rt-Yk4Nz8Uq2Ma6Ts0Rd5Fv"


def server(general: str) -> ServerSettings:
    """Load ``general_settings`` that must be fine."""
    return loaded(ONE + f"general_settings: {{{general}}}").settings.server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Issues certificates."""
    return Authority(tmp_path_factory.mktemp("authority"))


# --- TLS -----------------------------------------------------------------------------------------


def test_a_certificate_beside_the_file(authority: Authority, tmp_path: Path) -> None:
    """Names are relative to the configuration's folder; the key may be in the certificate's file."""
    pair = authority.issue()
    (tmp_path / "both.pem").write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
    (tmp_path / "config.yaml").write_text(ONE + "general_settings: {tls: {cert_file: both.pem}}\n")
    tls = load(tmp_path / "config.yaml", environ=ENVIRON).settings.server.tls
    assert tls == ListenTlsSettings(cert_file=str(tmp_path / "both.pem"))
    assert server(f"tls: {{cert_file: {pair.certificate}, key_file: {pair.key}}}").tls == ListenTlsSettings(
        cert_file=str(pair.certificate), key_file=str(pair.key)
    )


def test_what_is_wrong_with_a_certificate_has_its_line(authority: Authority, tmp_path: Path) -> None:
    """The same words as at run time, at the key of the file that is wrong."""
    pair, other = authority.issue(), authority.issue()
    text = ONE + f"general_settings:\n  tls:\n    cert_file: {pair.certificate}\n    key_file: "
    for file, found in ((other.key, "another certificate's"), (tmp_path / "none", "no such file"), (tmp_path, "no regular file")):
        fault = problem(text + f"{file}\n")
        assert fault.path == "general_settings.tls.key_file" and found in fault.found
        assert fault.line == len(text.splitlines())


def test_a_fault_of_another_kind_is_told_alone(tmp_path: Path) -> None:
    """A file is not looked for under a name that is none."""
    assert problem(ONE + "general_settings: {tls: {cert_file: [a]}}").path == "general_settings.tls.cert_file"
    assert problem(ONE + "general_settings: {tls: {key_file: a}}").path == "general_settings.tls.cert_file"
    assert problem(ONE + "general_settings: {tls: {cert_file: /nowhere, key: a}}").path == "general_settings.tls.key"


def test_a_name_from_the_environment_is_not_shown() -> None:
    """As every value that a variable supplied."""
    fault = problem(ONE + "general_settings: {tls: {cert_file: os.environ/CERT}}", CERT="/nowhere/hunter2-secret.pem")
    assert fault.path == "general_settings.tls.cert_file"
    assert "hunter2" not in str(fault)


# --- PROXY headers -------------------------------------------------------------------------------


def test_proxy_headers_need_somebody_to_believe() -> None:
    """Without trusted proxies nobody could connect."""
    assert server(f"proxy_protocol: true, trusted_proxies: [10.0.0.1], {KEY}").proxy_protocol
    assert not server("proxy_protocol: false").proxy_protocol
    fault = problem(ONE + f"general_settings: {{proxy_protocol: true, {KEY}}}")
    assert fault.path == "general_settings.proxy_protocol" and "trusted_proxies" in fault.expected


def test_proxy_headers_need_a_key() -> None:
    """A router without keys serves its own host, and behind a proxy the whole world comes from there."""
    fault = problem(ONE + "general_settings: {proxy_protocol: true, trusted_proxies: [127.0.0.1]}")
    assert fault.path == "general_settings.proxy_protocol" and "any key" in fault.found
    both = problems(ONE + "general_settings: {proxy_protocol: true}")
    assert [each.path for each in both] == ["general_settings.proxy_protocol"] * 2


def test_a_fault_in_what_is_needed_is_told_alone() -> None:
    """A consequence is not told beside its cause."""
    text = ONE + f"general_settings: {{proxy_protocol: true, trusted_proxies: [nowhere], {KEY}}}"
    assert problem(text).path == "general_settings.trusted_proxies[0]"


# --- the prefix ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("written", "read"), [("/voice", "/voice"), ("/voice/", "/voice"), ("/", ""), ("/a/b-c.d", "/a/b-c.d")])
def test_a_prefix(written: str, read: str) -> None:
    """With a slash before it and none behind it, however it is written."""
    assert server(f"root_path: {written}").root_path == read


@pytest.mark.parametrize("written", ["voice", "/a//b", "/a/../b", "/a b", "/a?b", "//a", "/{a}", "/%61"])
def test_what_is_no_prefix(written: str) -> None:
    """Nothing that a proxy or a browser would read in another way."""
    with pytest.raises(ConfigError):
        server(f"root_path: {json.dumps(written)}")
