"""Whatever a client sends, the handshake answers in the router's own, short words, or reads it correctly."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from hypothesis import given
from hypothesis import strategies as st

from router.config.settings import GroupSettings, Secret, ServerSettings, StrategySettings
from router.errors import ClientError
from router.handshake import RequestHead, client_address, credentials, forward, origin_allowed, parse, refusal
from router.providers import PROVIDERS
from tests.unit.providers.helpers import WITH_KEY, deployment

NAMES = st.sampled_from(
    [
        "Host",
        "Upgrade",
        "Connection",
        "Sec-WebSocket-Version",
        "Sec-WebSocket-Key",
        "Sec-WebSocket-Protocol",
        "Origin",
        "User-Agent",
        "Authorization",
        "api-key",
        "X-Forwarded-For",
        "Content-Length",
        "X-Tenant",
    ]
)
VALUES = st.one_of(
    st.sampled_from(
        ["localhost:4000", "websocket", "Upgrade", "13", "dGhlIHNhbXBsZSBub25jZQ==", "realtime", "Bearer k", "http://h"]
    ),
    st.text(max_size=60),
)
LEGAL = (
    ("Host", "localhost"),
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
)
HEADERS = st.lists(st.tuples(NAMES | st.text(max_size=20), VALUES), max_size=12)
QUERIES = st.text(max_size=200) | st.lists(
    st.tuples(st.sampled_from(["model", "deployment", "intent", "call_id", "api-key", "x"]), st.text(max_size=30)), max_size=5
).map(lambda pairs: urlencode(pairs, errors="replace"))
SERVERS = st.sampled_from(
    [
        ServerSettings(),
        ServerSettings(master_key=Secret("m" * 20), default_model="d", trusted_proxies=("10.0.0.0/8", "nonsense")),
        ServerSettings(master_key=Secret("m" * 20), allowed_origins=("https://a",), handshake_errors="close"),
    ]
)
GROUP = GroupSettings(
    name="g",
    deployments=(),
    strategy=StrategySettings(name="first", cls=object, options=None),
    forward_headers=frozenset({"x-tenant", "host", "authorization", "sec-websocket-protocol", "user-agent"}),
    forward_query=frozenset({"x", "model", "api-key"}),
)


@given(
    method=st.sampled_from(["GET", "POST", ""]) | st.text(max_size=10),
    path=st.sampled_from(["/v1/realtime", "/realtime/", "/openai/realtime"]) | st.text(max_size=30),
    query=QUERIES,
    headers=HEADERS,
    legal=st.booleans(),
    version=st.sampled_from([(1, 0), (1, 1), (2, 0)]),
    server=SERVERS,
    peer=st.sampled_from(["127.0.0.1", "10.0.0.1", "::1", ""]) | st.text(max_size=20),
)
def test_no_request_is_too_strange(
    method: str,
    path: str,
    query: str,
    headers: list[tuple[str, str]],
    legal: bool,
    version: tuple[int, int],
    server: ServerSettings,
    peer: str,
) -> None:
    """A request is read or refused by a ``ClientError`` with a short, printable text, and what was read can go on."""
    request = RequestHead(method=method, path=path, query=query, headers=(*(LEGAL if legal else ()), *headers), version=version)
    refusal(request, server)
    try:
        upgrade = parse(request, server, peer=peer)
    except ClientError as exc:
        assert len(exc.public_message) < 1000
        assert exc.public_message.isprintable()
        return
    assert 0 < len(upgrade.model) <= 256
    upgrade.model.encode()
    for text in (*upgrade.headers, *upgrade.headers.values(), *upgrade.query, *upgrade.query.values()):
        text.encode()
    sent = forward(upgrade, GROUP)
    for name, provider in PROVIDERS.items():
        settings = deployment(name, api_base="https://h/v1", **WITH_KEY)
        target = provider.target(settings, sent, token=None)
        assert target.url.isascii()
        assert not {header.lower() for header in target.headers} & {"host", "sec-websocket-protocol", "cookie"}


@given(model=st.text(min_size=1, max_size=256).filter(lambda text: text.isprintable() and text.strip() != ""))
def test_every_printable_model_arrives(model: str) -> None:
    """What a client escapes into the query is the model's name, character for character."""
    request = RequestHead(method="GET", path="/v1/realtime", query=f"model={quote(model, safe='')}", headers=LEGAL)
    assert parse(request, ServerSettings(), peer="127.0.0.1").model == model


@given(
    token=st.text(
        alphabet=st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=",;\"'\\"), min_size=1, max_size=100
    ),
    space=st.sampled_from(["", " ", "  ", "\t"]),
    others=st.lists(st.sampled_from(["realtime", "openai-beta.realtime-v1", "x"]), max_size=3),
)
def test_a_key_among_the_subprotocols_is_found(token: str, space: str, others: list[str]) -> None:
    """The key is taken from the list wherever it stands and however it is spaced, and the answer is one of those offered."""
    token = f"hunter2{token}"
    offered = [*others[:1], f"openai-insecure-api-key.{token}", *others[1:]]
    protocols = ("Sec-WebSocket-Protocol", f",{space}".join(offered))
    request = RequestHead(method="GET", path="/v1/realtime", query="model=m", headers=(*LEGAL, protocols))
    upgrade = parse(request, ServerSettings(), peer="127.0.0.1")
    assert [secret.reveal() for secret in upgrade.credentials] == [token]
    assert upgrade.subprotocol in offered
    assert credentials(request) == upgrade.credentials
    assert "hunter2" not in repr(upgrade)


@given(
    chain=st.lists(st.ip_addresses().map(str), max_size=5),
    client=st.ip_addresses(network="203.0.113.0/24").map(str),
    trusted=st.lists(st.ip_addresses(network="10.0.0.0/8").map(str), max_size=5),
)
def test_a_client_cannot_choose_its_address(chain: list[str], client: str, trusted: list[str]) -> None:
    """Whatever a client writes before the proxies do, its address is the one the first trusted proxy saw."""
    header = ", ".join([*chain, client, *trusted])
    assert client_address("10.0.0.1", [("X-Forwarded-For", header)], ["10.0.0.0/8"]) == client


def written(address: str, how: str) -> str:
    """An address as proxies write it: alone, or with a port."""
    if how == "port":
        return f"[{address}]:443" if ":" in address else f"{address}:443"
    return f"[{address}]" if how == "brackets" and ":" in address else address


@given(
    claims=st.lists(st.text(st.characters(exclude_characters="\r\n\0"), max_size=40), max_size=4),
    client=st.one_of(st.ip_addresses(network="203.0.113.0/24"), st.ip_addresses(network="2001:db8:1::/48")).map(str),
    trusted=st.lists(
        st.one_of(st.ip_addresses(network="10.0.0.0/8"), st.ip_addresses(network="2001:db8:2::/48")).map(str), max_size=5
    ),
    how=st.sampled_from(["plain", "port", "brackets"]),
    lines=st.booleans(),
)
def test_whatever_a_client_claims_is_not_believed(
    claims: list[str], client: str, trusted: list[str], how: str, lines: bool
) -> None:
    """Any text before what proxies wrote, in one header or in several, IPv4 and IPv6, with ports and brackets."""
    hops = [*claims, written(client, how), *(written(address, how) for address in trusted)]
    headers = [("x-forwarded-for", hop) for hop in hops] if lines else [("X-Forwarded-For", ",".join(hops))]
    proxies = ["10.0.0.0/8", "2001:db8:2::/48"]
    assert client_address("::ffff:10.0.0.1", headers, proxies) == client
    # Who is no proxy is himself, whatever he says.
    assert client_address(client, headers, proxies) == client


@given(origin=st.text(max_size=60), host=st.text(max_size=60))
def test_origins_never_raise(origin: str, host: str) -> None:
    """Any text at all is an answer of yes or no, and never yes for the null origin of a sandbox."""
    assert origin_allowed(origin, host, ()) in (True, False)
    assert not origin_allowed("null", host, ())
