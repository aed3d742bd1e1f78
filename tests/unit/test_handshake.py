"""From an upgrade request to what the client wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from router.auth import Principal
from router.config.settings import GroupSettings, Secret, ServerSettings, StrategySettings
from router.errors import BadHandshake, ClientError, PermissionDenied, UpgradeRequired
from router.handshake import (
    ROUTES,
    Refusal,
    RequestHead,
    Upgrade,
    allowed_part,
    check_keyless,
    check_upgrade,
    client_address,
    client_scheme,
    credentials,
    forward,
    is_trusted,
    origin_allowed,
    parse,
    refusal,
    to_call,
    without_prefix,
)

SERVER = ServerSettings(master_key=Secret("m" * 20))
KEYLESS = ServerSettings()
Headers = Sequence[tuple[str, str]]
BASE: Headers = (
    ("Host", "localhost:4000"),
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
)
FIREFOX = ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64)")
PAGE = ("Origin", "http://localhost:4000")


def head(query: str = "model=m", *, extra: Headers = (), without: Sequence[str] = (), **changes: Any) -> RequestHead:
    """Return a legal upgrade request, changed."""
    gone = {name.lower() for name in (*without, *(name for name, _ in extra if name in dict(BASE)))}
    headers = (*(pair for pair in BASE if pair[0].lower() not in gone), *extra)
    return RequestHead(**{"method": "GET", "path": "/v1/realtime", "query": query, "headers": headers, **changes})


def upgrade(query: str = "model=m", *, server: ServerSettings = SERVER, peer: str = "203.0.113.9", **changes: Any) -> Upgrade:
    """Return what is read from such a request."""
    return parse(head(query, **changes), server, peer=peer)


def group(**changes: Any) -> GroupSettings:
    """Return a group without deployments."""
    strategy = StrategySettings(name="first", cls=object, options=None)
    return GroupSettings(**{"name": "g", "deployments": (), "strategy": strategy, **changes})


def revealed(found: Upgrade) -> list[str]:
    """Return the credentials in the open."""
    return [secret.reveal() for secret in found.credentials]


# --- RFC 6455 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"extra": [("Upgrade", "WebSocket")]},
        {"extra": [("Upgrade", "h2c, websocket")]},
        {"extra": [("Connection", "keep-alive, Upgrade")]},
        {"extra": [("Connection", "keep-alive"), ("connection", "upgrade")]},
        {"extra": [("Content-Length", "0"), ("Content-Type", "application/json")]},
        {"extra": [("Sec-WebSocket-Extensions", "permessage-deflate")]},
    ],
)
def test_a_legal_upgrade(changes: dict[str, Any]) -> None:
    """Everything that RFC 6455 allows and real clients send is accepted."""
    check_upgrade(head(**changes))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"without": ["Upgrade", "Connection", "Sec-WebSocket-Version", "Sec-WebSocket-Key"]},
            UpgradeRequired,
            "WebSocket client",
        ),
        ({"without": ["Upgrade"]}, UpgradeRequired, "proxy"),
        ({"extra": [("Upgrade", "h2c")], "without": ["Sec-WebSocket-Key"]}, UpgradeRequired, "WebSocket client"),
        ({"extra": [("Sec-WebSocket-Version", "8")]}, UpgradeRequired, "must be 13, found '8'"),
        ({"without": ["Sec-WebSocket-Version"]}, UpgradeRequired, "must be 13, found none"),
        ({"method": "POST"}, BadHandshake, "'POST'"),
        ({"version": (1, 0)}, BadHandshake, r"HTTP/1\.0"),
        ({"without": ["Connection"]}, BadHandshake, "Connection: Upgrade"),
        ({"extra": [("Connection", "close")]}, BadHandshake, "Connection: Upgrade"),
        ({"without": ["Host"]}, BadHandshake, "Host"),
        ({"extra": [("Host", "a"), ("host", "b")]}, BadHandshake, "'host' may occur once"),
        ({"without": ["Sec-WebSocket-Key"]}, BadHandshake, "Sec-WebSocket-Key"),
        ({"extra": [("Sec-WebSocket-Key", "c2hvcnQ=")]}, BadHandshake, "16 bytes"),
        ({"extra": [("Sec-WebSocket-Key", "!" * 24)]}, BadHandshake, "16 bytes"),
        ({"extra": [("Sec-WebSocket-Key", "é" * 24)]}, BadHandshake, "16 bytes"),
        ({"extra": [("Sec-WebSocket-Key", "A" * 24)]}, BadHandshake, "16 bytes"),
        ({"extra": [("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="), ("sec-websocket-key", "x")]}, BadHandshake, "once"),
        ({"extra": [("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Version", "13")]}, BadHandshake, "once"),
        ({"extra": [("Authorization", "Bearer a"), ("authorization", "Bearer b")]}, BadHandshake, "once"),
        ({"extra": [("Origin", "http://a"), ("Origin", "http://localhost:4000")]}, BadHandshake, "once"),
        ({"extra": [("Content-Length", "5")]}, BadHandshake, "no body"),
        ({"extra": [("Transfer-Encoding", "chunked")]}, BadHandshake, "no body"),
        ({"extra": [("X-A", "1\r\nX-B: 2")]}, BadHandshake, "control character"),
        ({"extra": [("X-A", "1\x01")]}, BadHandshake, "control character"),
    ],
)
def test_an_upgrade_that_is_none(changes: dict[str, Any], error: type[ClientError], words: str) -> None:
    """Each clause of RFC 6455 section 4.2.1 has its own message."""
    with pytest.raises(error, match=words):
        parse(head(**changes), SERVER, peer="203.0.113.9")


# --- path and query ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*ROUTES, *(f"{route}/" for route in ROUTES)])
def test_the_routes(path: str) -> None:
    """Every path that an SDK builds is served, with and without a slash at its end."""
    assert upgrade(path=path).path == path.rstrip("/")


@pytest.mark.parametrize("path", ["/", "", "/v1/realtime/x", "/v2/realtime", "/V1/REALTIME"])
def test_other_paths(path: str) -> None:
    """Whatever else is asked for is told where sessions are."""
    with pytest.raises(BadHandshake, match="Connect to /v1/realtime"):
        upgrade(path=path)


@pytest.mark.parametrize(
    ("query", "model"),
    [
        ("model=m", "m"),
        ("model=gpt-realtime&x=1", "gpt-realtime"),
        ("deployment=d&api-version=2025-04-01-preview", "d"),
        ("model=a&deployment=a", "a"),
        ("model=a%2Fb%20c", "a/b c"),
        ("model=%C3%A9", "é"),
        ("model=" + "x" * 256, "x" * 256),
        ("intent=transcription&model=w", "w"),
    ],
)
@pytest.mark.parametrize("path", ROUTES)
def test_the_model(path: str, query: str, model: str) -> None:
    """``model`` and ``deployment`` name the group on any path."""
    assert upgrade(query, path=path).model == model


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", r"add \?model=NAME"),
        ("modle=m", r"add \?model=NAME"),
        ("intent=transcription", "intent=transcription the router needs the model"),
        ("model=", "empty"),
        ("model=%20", "empty"),
        ("deployment=", "empty"),
        ("model=a&model=b", "'model' may occur once"),
        ("model=a&model=a", "'model' may occur once"),
        ("deployment=a&deployment=a", "'deployment' may occur once"),
        ("model=a&deployment=b", "two different models"),
        ("model=a&deployment=", "two different models"),
        ("model=" + "x" * 257, "longer than 256"),
        ("model=a%00b", "cannot be printed"),
        ("model=a%0d%0ab", "cannot be printed"),
        ("model=m&call_id=rtc_1", "call_id"),
        ("model=m&call_id=", "call_id"),
        ("model=m&intent=chat", "'realtime' or 'transcription', found 'chat'"),
        ("model=m&intent=", "'realtime' or 'transcription'"),
        ("model=m&intent=realtime&intent=realtime", "'intent' may occur once"),
        ("&".join(f"p{number}=1" for number in range(65)), "more than 64"),
        ("x=" + "y" * 8200, "longer than 8192"),
    ],
)
def test_a_query_that_cannot_be_used(query: str, words: str) -> None:
    """What is missing, empty, too long or contradicts itself is told apart."""
    with pytest.raises(BadHandshake, match=words):
        upgrade(query)


def test_the_default_model() -> None:
    """A configured default stands for a missing model, not for an empty one."""
    server = ServerSettings(master_key=SERVER.master_key, default_model="d")
    assert upgrade("", server=server).model == "d"
    assert upgrade("intent=transcription", server=server).model == "d"
    assert upgrade("model=m", server=server).model == "m"
    with pytest.raises(BadHandshake, match="empty"):
        upgrade("model=", server=server)


@pytest.mark.parametrize(
    ("query", "intent"),
    [("model=m", None), ("model=m&intent=realtime", "realtime"), ("model=m&intent=transcription", "transcription")],
)
def test_the_intent(query: str, intent: str | None) -> None:
    """The intent is what the client named."""
    assert upgrade(query).intent == intent


# --- credentials ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "headers", "expected"),
    [
        ("model=m", [], []),
        ("model=m", [("Authorization", "Bearer k")], ["k"]),
        ("model=m", [("authorization", "bEARER   k ")], ["k"]),
        ("model=m", [("Authorization", "Bearer")], []),
        ("model=m", [("Authorization", "Basic dTpw")], []),
        ("model=m", [("api-key", "k")], ["k"]),
        ("model=m", [("X-API-Key", "k")], ["k"]),
        ("model=m", [("Sec-WebSocket-Protocol", "realtime, openai-insecure-api-key.k, openai-beta.realtime-v1")], ["k"]),
        ("model=m", [("Sec-WebSocket-Protocol", "realtime,openai-insecure-api-key.k")], ["k"]),
        ("model=m", [("Sec-WebSocket-Protocol", "realtime"), ("Sec-WebSocket-Protocol", "xai-client-secret.k")], ["k"]),
        ("model=m", [("Sec-WebSocket-Protocol", "openai-insecure-api-key.")], []),
        ("model=m", [("Sec-WebSocket-Protocol", "openai-insecure-api-key.a.b")], ["a.b"]),
        ("model=m&api-key=k", [], ["k"]),
        ("model=m&api_key=k", [], ["k"]),
        # The most telling place first, each once.
        (
            "model=m&api-key=q",
            [("Sec-WebSocket-Protocol", "openai-insecure-api-key.s"), ("api-key", "h"), ("Authorization", "Bearer b")],
            ["b", "h", "s", "q"],
        ),
        ("model=m", [("api-key", "k"), ("Authorization", "Bearer k")], ["k"]),
    ],
)
def test_credentials(query: str, headers: Headers, expected: list[str]) -> None:
    """Keys are found in all places where clients put them."""
    found = upgrade(query, extra=headers)
    assert revealed(found) == expected
    assert list(found.credentials) == list(credentials(head(query, extra=headers)))


def test_no_credential_is_left_anywhere() -> None:
    """After the credentials are taken out, nothing that is printed, shown to a strategy or forwarded holds one."""
    secrets = [
        ("Authorization", "Bearer hunter2"),
        ("api-key", "hunter2"),
        ("x-api-key", "hunter2"),
        ("Proxy-Authorization", "Basic hunter2"),
        ("Cookie", "session=hunter2"),
        ("Sec-WebSocket-Protocol", "openai-insecure-api-key.hunter2"),
    ]
    query = "model=m&api-key=hunter2&api_key=hunter2&token=hunter2&key=hunter2"
    request = head(query, extra=secrets)
    found = parse(request, SERVER, peer="203.0.113.9")
    call = to_call(found, group(), Principal(name="team"))
    names = frozenset(name.lower() for name, _ in secrets)
    sent = forward(found, group(forward_headers=names, forward_query=frozenset({"api-key", "api_key"})))
    everything = (
        repr(request),
        repr(found),
        str(found),
        repr(call),
        dict(found.headers),
        dict(found.query),
        dict(sent.headers),
        dict(sent.query),
    )
    assert "hunter2" not in str(everything)
    assert "hunter2" not in repr(refusal(request, SERVER))


# --- subprotocols and browsers -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "answer"),
    [
        (None, None),
        ("realtime", "realtime"),
        ("realtime, openai-insecure-api-key.k", "realtime"),
        ("openai-insecure-api-key.k,openai-agents-sdk.0.20.0,realtime", "realtime"),
        # Browsers fail when they offered something and nothing is chosen; these offer a key alone.
        ("xai-client-secret.tok", "xai-client-secret.tok"),
        ("openai-beta.realtime-v1, openai-insecure-api-key.k", "openai-insecure-api-key.k"),
        # Another protocol altogether: the client may know that it is at the wrong place.
        ("graphql-ws", None),
        ("Realtime", None),
        ("", None),
    ],
)
def test_the_subprotocol(offered: str | None, answer: str | None) -> None:
    """``realtime`` is answered when it was offered, and a client that offers only its key gets that back."""
    extra = [] if offered is None else [("Sec-WebSocket-Protocol", offered)]
    assert upgrade(extra=extra).subprotocol == answer


@pytest.mark.parametrize(
    ("extra", "browser"),
    [
        ([], False),
        ([PAGE, FIREFOX], True),
        ([PAGE], False),
        ([FIREFOX], False),
        ([PAGE, ("User-Agent", "websocket-client/1.8")], False),
        ([("Sec-WebSocket-Protocol", "realtime,openai-insecure-api-key.k")], True),
        ([("Sec-WebSocket-Protocol", "realtime")], False),
    ],
)
def test_what_is_a_browser(extra: Headers, browser: bool) -> None:
    """An origin with a browser's name, or a key among the subprotocols."""
    assert upgrade(extra=extra).browser is browser


@pytest.mark.parametrize(
    ("form", "changes", "expected"),
    [
        ("auto", {"extra": [PAGE, FIREFOX]}, Refusal(by_close=True)),
        (
            "auto",
            {"extra": [("Sec-WebSocket-Protocol", "realtime,openai-insecure-api-key.k")]},
            Refusal(by_close=True, subprotocol="realtime"),
        ),
        ("auto", {}, Refusal(by_close=False)),
        ("http", {"extra": [PAGE, FIREFOX]}, Refusal(by_close=False)),
        ("close", {}, Refusal(by_close=True)),
        # What is no legal upgrade cannot be accepted.
        ("close", {"without": ["Sec-WebSocket-Key"]}, Refusal(by_close=False)),
        ("auto", {"extra": [PAGE, FIREFOX, ("Sec-WebSocket-Version", "8")]}, Refusal(by_close=False)),
        # A query that cannot be used does not keep a browser from being told.
        ("auto", {"extra": [PAGE, FIREFOX], "query": ""}, Refusal(by_close=True)),
    ],
)
def test_the_form_of_a_refusal(form: Any, changes: dict[str, Any], expected: Refusal) -> None:
    """Programs read a status, browsers an event and a close code."""
    server = ServerSettings(master_key=SERVER.master_key, handshake_errors=form)
    assert refusal(head(**changes), server) == expected


# --- who may connect -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "expected"),
    [
        ("203.0.113.9", [], [], "203.0.113.9"),
        ("203.0.113.9", ["1.2.3.4"], [], "203.0.113.9"),
        ("203.0.113.9", ["1.2.3.4"], ["10.0.0.0/8"], "203.0.113.9"),
        ("10.0.0.1", ["1.2.3.4"], ["10.0.0.0/8"], "1.2.3.4"),
        # What the client wrote itself stands left of what a trusted proxy wrote.
        ("10.0.0.1", ["6.6.6.6, 1.2.3.4"], ["10.0.0.0/8"], "1.2.3.4"),
        ("10.0.0.1", ["6.6.6.6, 1.2.3.4, 10.0.0.2"], ["10.0.0.0/8"], "1.2.3.4"),
        ("10.0.0.1", ["6.6.6.6", "1.2.3.4", "10.0.0.2"], ["10.0.0.0/8"], "1.2.3.4"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], ["10.0.0.0/8"], "10.0.0.3"),
        ("10.0.0.1", ["1.2.3.4, junk"], ["10.0.0.0/8"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4, junk, 10.0.0.2"], ["10.0.0.0/8"], "10.0.0.2"),
        ("10.0.0.1", ["1.2.3.4,"], ["10.0.0.0/8"], "10.0.0.1"),
        ("10.0.0.1", [""], ["10.0.0.0/8"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4:5678"], ["10.0.0.1"], "1.2.3.4"),
        ("10.0.0.1", ["[2001:db8::1]:443"], ["10.0.0.1"], "2001:db8::1"),
        ("10.0.0.1", ["2001:db8::1"], ["10.0.0.1"], "2001:db8::1"),
        ("10.0.0.1", ["[2001:db8::1]x"], ["10.0.0.1"], "10.0.0.1"),
        ("::ffff:10.0.0.1", ["::ffff:1.2.3.4"], ["10.0.0.0/8"], "1.2.3.4"),
        ("fe80::1%eth0", [], [], "fe80::1"),
        ("", ["1.2.3.4"], ["10.0.0.0/8"], ""),
    ],
)
def test_the_clients_address(peer: str, forwarded: list[str], trusted: list[str], expected: str) -> None:
    """Only what trusted proxies wrote counts, read from the right."""
    headers = [("X-Forwarded-For", value) for value in forwarded]
    assert client_address(peer, headers, trusted) == expected


def test_a_long_chain_is_walked_so_far() -> None:
    """A header full of trusted addresses costs a bounded number of steps."""
    chain = ", ".join(["1.2.3.4", *["10.0.0.2"] * 5000])
    assert client_address("10.0.0.1", [("X-Forwarded-For", chain)], ["10.0.0.0/8"]) == "10.0.0.2"


def test_forwarded_is_not_read() -> None:
    """A proxy that writes X-Forwarded-For passes a client's own Forwarded on as it is."""
    headers = [("Forwarded", "for=6.6.6.6"), ("X-Real-IP", "6.6.6.6"), ("X-Forwarded-For", "1.2.3.4")]
    assert client_address("10.0.0.1", headers, ["10.0.0.0/8"]) == "1.2.3.4"
    assert client_address("10.0.0.1", headers[:2], ["10.0.0.0/8"]) == "10.0.0.1"


@pytest.mark.parametrize(
    ("peer", "trusted", "expected"),
    [
        ("10.0.0.1", ["10.0.0.0/8"], True),
        ("::ffff:10.0.0.1", ["10.0.0.0/8"], True),
        ("2001:db8::1", ["10.0.0.0/8", "2001:db8::/32"], True),
        ("11.0.0.1", ["10.0.0.0/8"], False),
        ("10.0.0.1", [], False),
        ("", ["0.0.0.0/0"], False),
        ("junk", ["0.0.0.0/0"], False),
        ("::1", ["0.0.0.0/0"], False),
    ],
)
def test_whose_word_counts(peer: str, trusted: list[str], expected: bool) -> None:
    """Addresses of the networks, in either form; nobody without an address."""
    assert is_trusted(peer, trusted) is expected


@pytest.mark.parametrize(
    ("peer", "told", "tls", "expected"),
    [
        ("10.0.0.1", ["https"], False, "https"),
        ("10.0.0.1", ["WSS"], False, "https"),
        ("10.0.0.1", ["http"], False, "http"),
        ("10.0.0.1", [], False, "http"),
        ("10.0.0.1", ["junk"], False, "http"),
        # What the client wrote itself stands left of what the proxy wrote.
        ("10.0.0.1", ["https, http"], False, "http"),
        ("10.0.0.1", ["https", "http"], False, "http"),
        ("10.0.0.1", ["http", "https"], False, "https"),
        ("1.2.3.4", ["https"], False, "http"),
        ("1.2.3.4", [], True, "https"),
        ("10.0.0.1", ["http"], True, "https"),
    ],
)
def test_by_what_a_client_came(peer: str, told: list[str], tls: bool, expected: str) -> None:
    """TLS of the router's own, or what the nearest trusted proxy says."""
    headers = [("X-Forwarded-Proto", value) for value in told]
    assert client_scheme(peer, headers, ["10.0.0.0/8"], tls=tls) == expected


@pytest.mark.parametrize(
    ("path", "root_path", "expected"),
    [
        ("/v1/realtime", "", "/v1/realtime"),
        ("/voice/v1/realtime", "/voice", "/v1/realtime"),
        ("/v1/realtime", "/voice", "/v1/realtime"),
        ("/voice/", "/voice", "/"),
        ("/voice", "/voice", "/voice"),
        ("/voices/v1/realtime", "/voice", "/voices/v1/realtime"),
        ("/voice/voice/v1/realtime", "/voice", "/voice/v1/realtime"),
    ],
)
def test_a_prefix_is_taken_off_once(path: str, root_path: str, expected: str) -> None:
    """Where the path begins with all of it."""
    assert without_prefix(path, root_path) == expected


def test_sessions_are_served_under_the_prefix() -> None:
    """The path that is told is the one without it; another prefix is no path of sessions."""
    server = ServerSettings(master_key=SERVER.master_key, root_path="/voice")
    for path in ("/voice/v1/realtime", "/v1/realtime", "/voice/v1/realtime/"):
        request = RequestHead(method="GET", path=path, query="model=m", headers=BASE)
        assert parse(request, server, peer="127.0.0.1").path == "/v1/realtime"
    with pytest.raises(BadHandshake):
        parse(RequestHead(method="GET", path="/other/v1/realtime", query="model=m", headers=BASE), server, peer="127.0.0.1")


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "expected"),
    [
        (None, "h:4000", (), True),
        (None, None, ("https://a",), True),
        ("http://h:4000", "h:4000", (), True),
        ("https://h:4000", "h:4000", (), True),
        ("HTTP://H:4000", "h:4000", (), True),
        ("https://h", "h", (), True),
        ("https://h", "h:443", (), True),
        ("http://h", "h:80", (), True),
        ("http://[::1]:4000", "[::1]:4000", (), True),
        ("http://h:4001", "h:4000", (), False),
        ("https://h", "h:80", (), False),
        ("http://h", "h:4000", (), False),
        ("http://evil", "h:4000", (), False),
        ("http://h.evil", "h", (), False),
        ("http://h@evil", "h", (), False),
        ("http://h/x", "h", (), False),
        ("http://h?x", "h", (), False),
        ("h", "h", (), False),
        ("", "h", (), False),
        ("http://", "", (), False),
        ("http://h:x", "h:x", (), False),
        ("null", "h", (), False),
        ("null", "h", ("https://a",), False),
        ("null", "h", ("null",), True),
        ("null", "h", ("*",), True),
        ("https://app.example.com", "h", ("https://app.example.com",), True),
        ("https://app.example.com:443", "h", ("https://app.example.com/",), True),
        ("http://app.example.com", "h", ("https://app.example.com",), False),
        ("https://evil.example.com", "h", ("https://app.example.com",), False),
        # A list takes the place of the default.
        ("http://h", "h", ("https://app.example.com",), False),
        ("chrome-extension://abc", "h", ("chrome-extension://abc",), True),
        ("anything at all", "h", ("*",), True),
    ],
)
def test_origins(origin: str | None, host: str | None, allowed: tuple[str, ...], expected: bool) -> None:
    """Pages of the router's own host connect by default, others when they are listed."""
    assert origin_allowed(origin, host, allowed) is expected


def test_a_foreign_page_is_told_where_to_look() -> None:
    """A page that may not connect is told the setting, with its origin shortened."""
    with pytest.raises(PermissionDenied, match=r"allowed_origins") as caught:
        upgrade(extra=[("Origin", "http://evil" + "x" * 5000)])
    assert len(caught.value.public_message) < 400


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:4000", "LOCALHOST:1", "127.0.0.1:4000", "127.9.9.9", "[::1]", "[::1]:4000"]
)
def test_keyless_from_this_host(host: str) -> None:
    """Without keys the router serves whoever asks for this host by its loopback name."""
    for peer in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
        assert upgrade(server=KEYLESS, peer=peer, extra=[("Host", host)]).model == "m"


@pytest.mark.parametrize("peer", ["203.0.113.9", "10.0.0.1", "2001:db8::1", "::ffff:10.0.0.1", ""])
def test_keyless_from_another_host(peer: str) -> None:
    """Anybody can write ``Host: localhost``; whoever handed the listening socket in may have opened it to the world."""
    with pytest.raises(PermissionDenied, match="master_key"):
        upgrade(server=KEYLESS, peer=peer, extra=[("Host", "localhost:4000")])


@pytest.mark.parametrize(
    "host", ["router.example.com", "10.0.0.1", "localhost.evil.com", "127.0.0.1.evil.com", "a@localhost", "[::2]", ":4000"]
)
def test_keyless_by_another_name(host: str) -> None:
    """A page whose own name was pointed at 127.0.0.1 does not get in."""
    with pytest.raises(PermissionDenied, match="master_key"):
        upgrade(server=KEYLESS, peer="127.0.0.1", extra=[("Host", host)])


@pytest.mark.parametrize("name", ["X-Forwarded-For", "x-forwarded-proto", "X-Forwarded-Host", "Forwarded", "Via", "X-Real-IP"])
def test_keyless_behind_a_proxy(name: str) -> None:
    """Behind a proxy a keyless router would be open to the world."""
    with pytest.raises(PermissionDenied, match="through a proxy"):
        upgrade(server=KEYLESS, peer="127.0.0.1", extra=[(name, "1")])
    assert upgrade(extra=[(name, "1")]).model == "m"


def test_keyless_without_a_host() -> None:
    """The rule also stands alone, for the endpoints that are no WebSocket."""
    with pytest.raises(PermissionDenied):
        check_keyless(head(without=["Host"]), peer="127.0.0.1")
    with pytest.raises(PermissionDenied):
        check_keyless(head(extra=[("Host", "localhost"), ("host", "evil")]), peer="127.0.0.1")


# --- what goes on --------------------------------------------------------------------------------


def test_what_is_forwarded_by_default() -> None:
    """Without configuration only the intent, the conversation and the safety identifier travel."""
    found = upgrade(
        "model=m&intent=realtime&conversation_id=c1&x=1",
        extra=[("OpenAI-Safety-Identifier", "u1"), ("X-Tenant", "t"), ("User-Agent", "ua")],
    )
    sent = forward(found, group())
    assert dict(sent.query) == {"intent": "realtime", "conversation_id": "c1"}
    assert dict(sent.headers) == {"openai-safety-identifier": "u1"}


def test_what_a_group_adds() -> None:
    """A group's lists widen what travels, also by a parameter that looks like a credential and is not the router's."""
    found = upgrade("model=m&x=1&x=2&y=3&token=t", extra=[("X-Tenant", "a"), ("x-tenant", "b"), ("X-Other", "c")])
    sent = forward(found, group(forward_query=frozenset({"x", "token"}), forward_headers=frozenset({"x-tenant"})))
    assert dict(sent.query) == {"x": "1", "token": "t"}
    assert dict(sent.headers) == {"x-tenant": "a, b"}


def test_what_never_travels() -> None:
    """Neither another account's identifiers nor the connection's own headers leave, whatever a group lists."""
    refused = [
        ("Authorization", "1"),
        ("api-key", "1"),
        ("X-Api-Key", "1"),
        ("Cookie", "1"),
        ("OpenAI-Organization", "1"),
        ("OpenAI-Project", "1"),
        ("OpenAI-Beta", "realtime=v1"),
        ("Keep-Alive", "1"),
        ("TE", "1"),
        ("Proxy-Authorization", "1"),
        ("Sec-WebSocket-Protocol", "realtime"),
        ("Sec-Fetch-Mode", "websocket"),
        ("Connection", "Upgrade, X-Hop"),
        ("X-Hop", "1"),
    ]
    found = upgrade("model=m&deployment=m&api-key=1&api_key=1", extra=refused)
    names = frozenset(name.lower() for name, _ in (*refused, *BASE))
    parameters = frozenset({"model", "deployment", "api-key", "api_key", "call_id"})
    sent = forward(found, group(forward_headers=names, forward_query=parameters))
    assert dict(sent.headers) == {}
    assert dict(sent.query) == {}


def test_what_a_program_hands_over_is_filtered_alike() -> None:
    """The list holds also for what did not come through a request, where nothing was taken out before."""
    headers = {name: "1" for name in ("openai-safety-identifier", "x-tenant", "authorization", "openai-beta", "te", "sec-x")}
    query = {"intent": "realtime", "model": "m", "x": "1", "y": "2"}
    sent = allowed_part(query, headers, group(forward_headers=frozenset(headers), forward_query=frozenset({"x", "model"})))
    assert dict(sent.headers) == {"openai-safety-identifier": "1", "x-tenant": "1"}
    assert dict(sent.query) == {"intent": "realtime", "x": "1"}


def test_the_call() -> None:
    """A strategy sees the group's resolved name, the key's name, and the request without its credentials."""
    found = upgrade("model=alias&user=u1&user=u2", extra=[("X-User", "u"), ("Cookie", "c"), ("Authorization", "Bearer k")])
    call = to_call(found, group(), Principal(name="team"))
    assert (call.group, call.principal) == ("g", "team")
    assert dict(call.query) == {"model": "alias", "user": "u1"}
    assert call.headers["x-user"] == "u"
    assert not {"cookie", "authorization", "sec-websocket-key"} & set(call.headers)


def test_bytes_that_are_not_utf_8() -> None:
    """What a strategy may hash can always be encoded."""
    found = upgrade("model=m&user=%FF", extra=[("X-User", "\udcff")])
    call = to_call(found, group(), Principal(name="team"))
    assert call.headers["x-user"].encode()
    assert call.query["user"].encode()
