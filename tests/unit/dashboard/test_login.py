"""Cookies, tokens and tickets hold for what they were made for, and for nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.config.settings import KeySettings, Secret, ServerSettings
from router.dashboard.login import (
    COOKIE,
    CSRF_HEADER,
    LOGIN_S,
    TICKET_PREFIX,
    TICKET_S,
    Logins,
    Spent,
    Throttle,
    check_ticket,
    cookie_of,
    from_own_page,
    principal_of,
    set_cookie,
)
from router.errors import AuthenticationFailed, PermissionDenied
from router.handshake import RequestHead
from tests.helpers.clock import ManualClock

NOW = 1_800_000_000.0
KEY = Secret("sk-master")
KEYED = ServerSettings(master_key=KEY)
KEYLESS = ServerSettings()
ORIGIN = "http://router.example"


def head(*headers: tuple[str, str], method: str = "POST") -> RequestHead:
    """A request to the router's own host."""
    return RequestHead(method=method, path="/admin/reload", headers=[("Host", "router.example"), *headers])


def logged_in(cookie: str, *more: tuple[str, str], token: str | None = None) -> RequestHead:
    """A request of the own page with a cookie, its token unless another is given, and more."""
    own = Logins(KEY).token(cookie) if token is None else token
    return head(("Cookie", f"other=1; {COOKIE}={cookie}"), (CSRF_HEADER, own), ("Origin", ORIGIN), *more)


def test_a_cookie_holds_for_twelve_hours() -> None:
    """It is valid until its last second, and not after it."""
    logins = Logins(KEY)
    cookie = logins.cookie(now_s=NOW)
    assert logins.valid(cookie, now_s=NOW + LOGIN_S - 1)
    assert not logins.valid(cookie, now_s=NOW + LOGIN_S)


def test_another_process_with_the_same_key_takes_it_and_one_with_another_key_does_not() -> None:
    """Nothing is stored: workers and replicas agree, and a new master key ends all logins."""
    cookie = Logins(KEY).cookie(now_s=NOW)
    assert Logins(Secret("sk-master")).valid(cookie, now_s=NOW)
    assert not Logins(Secret("sk-rotated")).valid(cookie, now_s=NOW)
    assert not Logins(None).valid(cookie, now_s=NOW)


@given(st.data())
def test_a_cookie_with_one_character_changed_is_worth_nothing(data: st.DataObject) -> None:
    """Expiry, nonce and signature are all under the signature."""
    logins = Logins(KEY)
    cookie = logins.cookie(now_s=NOW)
    at = data.draw(st.integers(0, len(cookie) - 1))
    other = data.draw(st.characters().filter(lambda character: character != cookie[at]))
    assert not logins.valid(cookie[:at] + other + cookie[at + 1 :], now_s=NOW)


@given(st.text())
def test_no_text_is_a_cookie_by_chance(text: str) -> None:
    """Whatever comes is refused without an exception."""
    assert not Logins(KEY).valid(text, now_s=NOW)
    assert Logins(KEY).redeem(text, "", ORIGIN, now_s=NOW) is None


def test_what_was_signed_for_one_purpose_serves_no_other() -> None:
    """A ticket is no cookie, and a cookie no ticket."""
    logins = Logins(KEY)
    cookie = logins.cookie(now_s=NOW)
    ticket = logins.ticket("", "", now_s=NOW)
    assert not logins.valid(ticket, now_s=NOW)
    assert logins.redeem(cookie, "", "", now_s=NOW) is None


def test_a_login_with_its_token_is_the_master_key() -> None:
    """The own page's requests count as the operator's."""
    cookie = Logins(KEY).cookie(now_s=NOW)
    principal = principal_of(logged_in(cookie), KEYED, now_s=NOW)
    assert principal is not None and principal.is_master


@pytest.mark.parametrize("token", ["", "x", "é", "\udcff"])
def test_a_login_without_its_token_may_do_nothing(token: str) -> None:
    """A page that makes the browser send the cookie does not know the token."""
    with pytest.raises(PermissionDenied, match="x-router-csrf"):
        principal_of(logged_in(Logins(KEY).cookie(now_s=NOW), token=token), KEYED, now_s=NOW)


def test_the_token_of_another_login_is_refused() -> None:
    """Tokens belong to one cookie each."""
    first, second = (Logins(KEY).cookie(now_s=NOW) for _ in range(2))
    with pytest.raises(PermissionDenied):
        principal_of(logged_in(first, token=Logins(KEY).token(second)), KEYED, now_s=NOW)


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ([], True),
        ([("Origin", "http://router.example")], True),
        ([("Origin", "https://router.example")], True),
        ([("Origin", "http://evil.example")], False),
        ([("Origin", "http://router.example:81")], False),
        ([("Origin", "null")], False),
        ([("Origin", ORIGIN), ("Origin", ORIGIN)], False),
        ([("Sec-Fetch-Site", "same-origin"), ("Origin", "https://public.example")], True),
        ([("Sec-Fetch-Site", "none")], True),
        ([("Sec-Fetch-Site", "same-site"), ("Origin", ORIGIN)], False),
        ([("Sec-Fetch-Site", "cross-site")], False),
        ([("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Site", "same-origin")], False),
    ],
)
def test_which_requests_are_no_foreign_page_s(headers: list[tuple[str, str]], own: bool) -> None:
    """The browser's own word counts first, then the origin; a program names neither."""
    assert from_own_page(head(*headers)) is own


def test_a_foreign_page_may_do_nothing_with_a_login_or_without_keys() -> None:
    """Neither the cookie nor a router that needs none serves another origin."""
    cookie = Logins(KEY).cookie(now_s=NOW)
    foreign = ("Sec-Fetch-Site", "cross-site")
    with pytest.raises(PermissionDenied, match="own page"):
        principal_of(logged_in(cookie, foreign), KEYED, now_s=NOW)
    with pytest.raises(PermissionDenied, match="own page"):
        principal_of(head(foreign), KEYLESS, now_s=NOW)
    assert principal_of(head(), KEYLESS, now_s=NOW) is None


def test_a_router_with_virtual_keys_alone_has_no_login() -> None:
    """Nothing could be signed, so nothing is valid."""
    server = ServerSettings(keys=(KeySettings(name="team", sha256="0" * 64),))
    forged = Logins(None).cookie(now_s=NOW)
    assert cookie_of(head(("Cookie", f"{COOKIE}={forged}")), server, now_s=NOW) is None


def test_a_cookie_of_another_router_on_the_host_does_not_hide_the_own_one() -> None:
    """Cookies know no ports: each of the name is looked at."""
    cookie = Logins(KEY).cookie(now_s=NOW)
    other = Logins(Secret("another")).cookie(now_s=NOW)
    assert cookie_of(head(("Cookie", f"{COOKIE}={other}; {COOKIE}={cookie}")), KEYED, now_s=NOW) == cookie


# --- tickets -------------------------------------------------------------------------------------


def play(cookie: str, ticket: str, *, origin: str | None = ORIGIN, more: str = "") -> RequestHead:
    """A request for a session of the playground."""
    headers = [("Cookie", f"{COOKIE}={cookie}"), ("Sec-WebSocket-Protocol", f"realtime, {TICKET_PREFIX}{ticket}{more}")]
    return head(*headers, *([] if origin is None else [("Origin", origin)]), method="GET")


def test_a_ticket_holds_for_a_minute_for_its_login_and_its_origin() -> None:
    """What it was made for is under its signature."""
    logins = Logins(KEY)
    cookie, other = logins.cookie(now_s=NOW), logins.cookie(now_s=NOW)
    ticket = logins.ticket(cookie, ORIGIN, now_s=NOW)
    assert check_ticket(play(cookie, ticket), KEYED, now_s=NOW + TICKET_S - 1) == ticket.split(".")[1]
    for request, now_s in [
        (play(cookie, ticket), NOW + TICKET_S),
        (play(other, ticket), NOW),
        (play("", ticket), NOW),
        (play(cookie, ticket, origin="https://router.example"), NOW),
        (play(cookie, ticket[:-1]), NOW),
        (play(cookie, ticket, more=f", {TICKET_PREFIX}{ticket}"), NOW),
    ]:
        with pytest.raises(AuthenticationFailed):
            check_ticket(request, KEYED, now_s=now_s)
    with pytest.raises(PermissionDenied):
        check_ticket(play(cookie, ticket, origin=None), KEYED, now_s=NOW)


def test_without_keys_a_ticket_is_the_own_page_s_alone() -> None:
    """Anybody can make one, but no page can name another origin than its own."""
    for origin, allowed in (("http://router.example", True), ("http://evil.example", False)):
        request = play("", Logins(None).ticket("", origin, now_s=NOW), origin=origin)
        if allowed:
            assert check_ticket(request, KEYLESS, now_s=NOW)
        else:
            with pytest.raises(AuthenticationFailed):
                check_ticket(request, KEYLESS, now_s=NOW)


def test_a_ticket_is_used_once() -> None:
    """Its nonce is remembered for as long as the ticket holds."""
    clock = ManualClock()
    spent = Spent(clock=clock)
    assert spent.first("nonce")
    clock.advance(TICKET_S - 1)
    assert not spent.first("nonce")
    assert spent.first("other")


def test_what_is_remembered_of_tickets_is_bounded_and_never_forgotten_too_early() -> None:
    """When too many are in use, new ones are refused until old ones have expired."""
    clock = ManualClock()
    spent = Spent(clock=clock)
    assert all(spent.first(str(number)) for number in range(10_000))
    assert not spent.first("one more")
    assert not spent.first("0")
    clock.advance(TICKET_S)
    assert spent.first("later")


# --- the rest ------------------------------------------------------------------------------------


def test_who_guesses_has_to_wait() -> None:
    """Ten wrong keys, then one more for each that is five minutes old; other addresses are not slowed down."""
    clock = ManualClock()
    throttle = Throttle(clock=clock, most=10, window_s=300.0)
    for _ in range(10):
        assert throttle.wait_s("198.51.100.7") == 0
        throttle.failed("198.51.100.7")
        clock.advance(1)
    assert throttle.wait_s("198.51.100.7") == pytest.approx(290.0)
    assert throttle.wait_s("198.51.100.8") == 0
    clock.advance(290)
    assert throttle.wait_s("198.51.100.7") == 0
    throttle.failed("198.51.100.7")
    assert throttle.wait_s("198.51.100.7") == pytest.approx(1.0)


def test_a_customer_s_ipv6_network_counts_as_one() -> None:
    """Otherwise each of 2^64 addresses had its own guesses."""
    throttle = Throttle(clock=ManualClock(), most=1)
    throttle.failed("2001:db8:1:2::1")
    assert throttle.wait_s("2001:db8:1:2:ffff::9%eth0") > 0
    assert throttle.wait_s("2001:db8:1:3::1") == 0
    assert throttle.wait_s("not an address") == 0


def test_the_cookie_s_attributes() -> None:
    """No script reads it, no other site sends it, and only https carries it where the page came by https."""
    plain = set_cookie("value", path="/voice/", secure=False, max_age_s=60)
    assert sorted(plain.split("; ")) == ["HttpOnly", "Max-Age=60", "Path=/voice/", "SameSite=Strict", f"{COOKIE}=value"]
    assert "Secure" in set_cookie("value", path="/", secure=True, max_age_s=60).split("; ")

