"""The proxy of a dial."""

from __future__ import annotations

import base64

import pytest

from router.errors import ConnectFailed
from router.proxies import proxy_for, proxy_problem, split_userinfo
from tests.unit.providers.helpers import deployment

URL = "wss://api.example.com/v1/realtime?model=m"
P = "http://proxy:3128"
Q = "http://other:3128"


@pytest.mark.parametrize(
    ("url", "own", "environ", "expected"),
    [
        (URL, None, {}, None),
        (URL, None, {"HTTPS_PROXY": P}, P),
        (URL, None, {"https_proxy": P, "HTTPS_PROXY": Q}, P),
        (URL, None, {"HTTP_PROXY": P}, None),
        ("ws://api.example.com/", None, {"HTTP_PROXY": P, "HTTPS_PROXY": Q}, P),
        (URL, None, {"ALL_PROXY": P}, P),
        (URL, None, {"ALL_PROXY": Q, "HTTPS_PROXY": P}, P),
        (URL, None, {"https_proxy": "", "ALL_PROXY": P}, None),
        (URL, None, {"HTTPS_PROXY": "proxy:3128"}, P),
        (URL, None, {"HTTPS_PROXY": "https://u:p@proxy"}, "https://u:p@proxy"),
        # The deployment's own word wins.
        (URL, Q, {"HTTPS_PROXY": P, "NO_PROXY": "*"}, Q),
        (URL, "none", {"HTTPS_PROXY": P}, None),
        (URL, "NONE", {"HTTPS_PROXY": P}, None),
        (URL, "", {"HTTPS_PROXY": P}, None),
        # This host's loopback is another machine for the proxy.
        ("ws://127.0.0.1:8080/", None, {"HTTP_PROXY": P}, None),
        ("ws://localhost:8080/", None, {"HTTP_PROXY": P}, None),
        ("ws://[::1]:8080/", None, {"HTTP_PROXY": P}, None),
        ("ws://127.0.0.1:8080/", P, {}, P),
    ],
)
def test_proxy_for(url: str, own: str | None, environ: dict[str, str], expected: str | None) -> None:
    """The deployment decides, then the variable of the scheme, then ALL_PROXY."""
    assert proxy_for(url, deployment("openai", proxy=own), environ) == expected


@pytest.mark.parametrize(
    ("url", "no_proxy", "exempt"),
    [
        (URL, "*", True),
        (URL, "example.com", True),
        (URL, ".example.com", True),
        (URL, "*.example.com", True),
        (URL, "EXAMPLE.com", True),
        (URL, "api.example.com", True),
        (URL, "foo, api.example.com", True),
        (URL, "foo api.example.com", True),
        (URL, "ple.com", False),
        (URL, "b.api.example.com", False),
        (URL, "", False),
        (URL, ",, ,", False),
        (URL, ".", False),
        (URL, "api.example.com:443", True),
        (URL, "api.example.com:8443", False),
        (URL, "api.example.com:x", False),
        ("wss://api.example.com:8443/", "api.example.com:8443", True),
        ("wss://api.example.com./", "api.example.com", True),
        ("wss://10.1.2.3/", "10.0.0.0/8", True),
        ("wss://10.1.2.3/", "10.1.2.3", True),
        ("wss://10.1.2.3/", "10.1.2.3:443", True),
        ("wss://10.1.2.3/", "11.0.0.0/8", False),
        ("wss://10.1.2.3/", "2.3", False),
        ("wss://[fd00::1]/", "fd00::/8", True),
        ("wss://[fd00::1]/", "[fd00::1]:443", True),
        ("wss://[fd00::1]/", "[fd00::1]:444", False),
        (URL, "10.0.0.0/8", False),
    ],
)
def test_no_proxy(url: str, no_proxy: str, exempt: bool) -> None:
    """NO_PROXY names hosts, domains and networks, with or without a port."""
    environ = {"HTTPS_PROXY": P, "NO_PROXY": no_proxy}
    assert proxy_for(url, deployment("openai"), environ) == (None if exempt else P)


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ("socks5://u:hunter2@h:1", "SOCKS"),
        ("ftp://u:hunter2@h:1", "another scheme"),
        ("http://", "no usable host"),
        ("http://u:hunter2@h:99999", "host or port"),
        ("http://[::1", "host or port"),
        ("http://h unter2", "no usable host"),
    ],
)
def test_a_proxy_that_cannot_be_used(proxy: str, words: str) -> None:
    """Another kind of proxy is an error rather than a dial around it, and its password is not repeated."""
    with pytest.raises(ConnectFailed, match=f"HTTPS_PROXY: found.*{words}|HTTPS_PROXY: .*{words}") as caught:
        proxy_for(URL, deployment("openai"), {"HTTPS_PROXY": proxy})
    assert "hunter2" not in str(caught.value)
    assert words in (proxy_problem(proxy) or "")
    with pytest.raises(ConnectFailed, match="proxy: found"):
        proxy_for(URL, deployment("openai", proxy=proxy), {})


@pytest.mark.parametrize("proxy", ["none", "", P, "https://u:p@h", "h:1"])
def test_a_proxy_without_a_problem(proxy: str) -> None:
    """What can be used passes the configuration's check."""
    assert proxy_problem(proxy) is None


@pytest.mark.parametrize(
    ("proxy", "url", "login"),
    [
        (P, P, None),
        ("https://u:p@h:1", "https://h:1", "u:p"),
        ("http://u%40x:p%20w%3A@h/path?x=1", "http://h", "u@x:p w:"),
        ("http://u:p@ss:w@h", "http://h", "u:p@ss:w"),
        ("http://u@[::1]:3128", "http://[::1]:3128", "u:"),
        ("http://%C3%BC:%FF@h", "http://h", "ü:\ufffd"),
    ],
)
def test_split_userinfo(proxy: str, url: str, login: str | None) -> None:
    """The user and password are taken out of the address and go into their header, unescaped."""
    found = split_userinfo(proxy)
    assert found.url == url
    assert (found.authorization is None) is (login is None)
    if found.authorization is not None and login is not None:
        scheme, _, value = found.authorization.reveal().partition(" ")
        assert (scheme, base64.b64decode(value).decode()) == ("Basic", login)


def test_a_proxy_hides_its_password() -> None:
    """Printing a proxy tells its address alone."""
    shown = repr(split_userinfo("http://someone:hunter2@h:1"))
    assert "h:1" in shown
    assert "hunter2" not in shown
    assert "someone" not in shown
