"""The URL of a server: what is taken, what is refused, and that no message repeats it."""

from __future__ import annotations

import pytest

from router.config import FleetSettings, Secret
from router.config.redis_url import HIGHEST_DB, UnfitUrl, host, parse

ONE = ("h", 6379)


def refused(url: str) -> UnfitUrl:
    """Read a URL that must be refused and return why."""
    with pytest.raises(UnfitUrl) as caught:
        parse(url)
    return caught.value


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("redis://h", FleetSettings(nodes=(ONE,))),
        ("redis://h/", FleetSettings(nodes=(ONE,))),
        ("REDIS://H", FleetSettings(nodes=(("H", 6379),))),
        ("redis://h:7000/3", FleetSettings(nodes=(("h", 7000),), db=3)),
        (f"redis://h/{HIGHEST_DB}", FleetSettings(nodes=(ONE,), db=HIGHEST_DB)),
        ("redis://h?db=3", FleetSettings(nodes=(ONE,), db=3)),
        ("redis://h/?db=3", FleetSettings(nodes=(ONE,), db=3)),
        ("redis://h?", FleetSettings(nodes=(ONE,))),
        ("rediss://h", FleetSettings(nodes=(ONE,), tls=True)),
        ("valkey://h", FleetSettings(nodes=(ONE,))),
        ("valkeys://h", FleetSettings(nodes=(ONE,), tls=True)),
        ("redis://redis_1.my-net.example.", FleetSettings(nodes=(("redis_1.my-net.example.", 6379),))),
        ("redis://10.0.0.1:1", FleetSettings(nodes=(("10.0.0.1", 1),))),
        ("redis://[::1]", FleetSettings(nodes=(("::1", 6379),))),
        ("redis://[2001:db8::1]:65535/1", FleetSettings(nodes=(("2001:db8::1", 65535),), db=1)),
        ("redis://u:p@h", FleetSettings(nodes=(ONE,), username="u", password=Secret("p"))),
        ("redis://:p@h", FleetSettings(nodes=(ONE,), password=Secret("p"))),
        ("redis://u@h", FleetSettings(nodes=(ONE,), username="u")),
        ("redis://u:a:b+,[]!$&'*;=@h", FleetSettings(nodes=(ONE,), username="u", password=Secret("a:b+,[]!$&'*;="))),
        ("redis://%C3%BC%3A:%2F%3F%23%40%25%20@h", FleetSettings(nodes=(ONE,), username="ü:", password=Secret("/?#@% "))),
        ("unix:///run/redis.sock", FleetSettings(path="/run/redis.sock")),
        ("unix:///run/redis.sock?db=2", FleetSettings(path="/run/redis.sock", db=2)),
        ("unix://u:p@/run/r%40b", FleetSettings(path="/run/r@b", username="u", password=Secret("p"))),
        ("redis+sentinel://h/main", FleetSettings(kind="sentinel", nodes=(("h", 26379),), service="main")),
        (
            "rediss+sentinel://u:p@a,b:1,[::1]:2/my.main-1_x/4",
            FleetSettings(
                kind="sentinel",
                nodes=(("a", 26379), ("b", 1), ("::1", 2)),
                service="my.main-1_x",
                db=4,
                username="u",
                password=Secret("p"),
                tls=True,
            ),
        ),
        ("valkey+sentinel://h/main?db=1", FleetSettings(kind="sentinel", nodes=(("h", 26379),), service="main", db=1)),
        ("valkeys+sentinel://h/main/", FleetSettings(kind="sentinel", nodes=(("h", 26379),), service="main", tls=True)),
        ("redis+cluster://h", FleetSettings(kind="cluster", nodes=(ONE,))),
        ("redis+cluster://h/0", FleetSettings(kind="cluster", nodes=(ONE,))),
        (
            "rediss+cluster://:p@a:1,a:2",
            FleetSettings(kind="cluster", nodes=(("a", 1), ("a", 2)), password=Secret("p"), tls=True),
        ),
        ("valkey+cluster://h", FleetSettings(kind="cluster", nodes=(ONE,))),
        ("valkeys+cluster://h", FleetSettings(kind="cluster", nodes=(ONE,), tls=True)),
    ],
)
def test_a_url_is_read(url: str, server: FleetSettings) -> None:
    """Every scheme, with and without what may be left out; what it does not say has its default."""
    assert parse(url) == server


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("", "no scheme"),
        ("h:6379", "no scheme"),
        ("redis:h", "no scheme"),
        ("http://h", "unknown scheme"),
        ("redis+tls://h", "unknown scheme"),
        ("://h", "unknown scheme"),
        ("redis://", "no host"),
        ("redis://:6379", "no host"),
        ("redis://u:p@", "no host"),
        ("redis:///0", "no host"),
        ("redis://h h", "a space"),
        ("redis://h\n", "a control"),
        ("redis://hé", "non-ASCII"),
        ("redis://" + "h" * 5000, "5008 characters"),
        ("redis://" + "h" * 254, "a malformed host"),
        ("redis://-h", "a malformed host"),
        ("redis://h..h", "a malformed host"),
        ("redis://h%20", "a malformed host"),
        ("redis://10.0.0.256", "a malformed host"),
        ("redis://1", "a malformed host"),
        ("redis://[::1", "a malformed host"),
        ("redis://[]", "a malformed host"),
        ("redis://[h]", "a malformed host"),
        ("redis://[1.2.3.4]", "a malformed host"),
        ("redis://[fe80::1%25eth0]", "a malformed host"),
        ("redis://[::1]x", "a malformed host"),
        ("redis://::1", "more than one ':'"),
        ("redis://h:1:2", "more than one ':'"),
        ("redis://h:", "a port"),
        ("redis://h:0", "a port"),
        ("redis://h:65536", "a port"),
        ("redis://h:+1", "a port"),
        ("redis://h:" + "1" * 3000, "a port"),
        ("redis://h/x", "a database"),
        ("redis://h/-1", "a database"),
        ("redis://h/0/", "a database"),
        (f"redis://h/{HIGHEST_DB + 1}", "a database"),
        ("redis://h/" + "1" * 4000, "a database"),
        ("redis://h?db=", "a database"),
        ("redis://h?db=1&db=1", "db twice"),
        ("redis://h/1?db=1", "the path and the parameter"),
        ("redis://h?socket_timeout=1", "an unknown parameter"),
        ("redis://h?db", "a database"),
        ("redis://h?&", "an unknown parameter"),
        ("redis://h?DB=1", "an unknown parameter"),
        ("redis://h?password=x", "the parameter password"),
        ("rediss://h?ssl_cert_reqs=none", "the parameter ssl_cert_reqs"),
        ("redis://h#x", "a '#'"),
        ("redis://@h", "nothing before the '@'"),
        ("redis://:@h", "an empty password"),
        ("redis://u:@h", "an empty password"),
        ("redis://u:p@q@h", "an '@'"),
        ("redis://u:p/q@h", "an '@'"),
        ("redis://u:p?q@h", "an '@'"),
        ("redis://u:p#q@h", "a '#'"),
        ("redis://u:%@h", "a '%'"),
        ("redis://u:%zz@h", "a '%'"),
        ("redis://u:%ff@h", "not UTF-8"),
        ("redis://u:%ed%a0%80@h", "not UTF-8"),
        ("redis://u:%00@h", "a control character"),
        ("redis://u%0a:p@h", "a control character"),
        ("redis://:os.environ/REDIS_PASSWORD@h", "a variable"),
        ("redis://:${REDIS_PASSWORD}@h", "a variable"),
        ("redis://:{{password}}@h", "a variable"),
        ("redis://a,b", "2 hosts"),
        ("unix://", "no path"),
        ("unix:///", "no path"),
        ("unix:///run/", "no path"),
        ("unix://run/redis.sock", "a host"),
        ("unix:///run/%00", "a control character"),
        ("unix:///" + "x" * 107, "108 bytes"),
        ("redis+sentinel://h", "no name of a master"),
        ("redis+sentinel://h//0", "no name of a master"),
        ("redis+sentinel://h/a%20b", "a malformed name"),
        ("redis+sentinel://h/main/x", "a database"),
        ("redis+sentinel:///main", "no host"),
        ("redis+sentinel://a,,b/main", "no host"),
        ("redis+sentinel://a,A:26379/main", "twice"),
        ("redis+cluster://h/1", "a database other than 0"),
        ("redis+cluster://h?db=1", "a database other than 0"),
        ("redis+cluster://" + ",".join(f"h{n}" for n in range(65)), "65 hosts"),
    ],
)
def test_anything_else_is_refused(url: str, found: str) -> None:
    """With words that say what is wrong, and nothing that is passed over in silence."""
    assert found in refused(url).found


@pytest.mark.parametrize(
    "url",
    [
        "hush://h",
        "hush",
        "redis://u:hush/@h",
        "redis://u:hush?@h",
        "redis://u:hush#@h",
        "redis://u:hush@@h",
        "redis://u:%hush@h",
        "redis://u:hush%00@h",
        "redis://hush%00:p@h",
        "redis://u:hush",
        "redis://hush/hush",
        "redis://h?hush=1",
        "redis://h?password=hush",
        "redis://:${hush}@h",
        "redis+sentinel://h/hu%20sh",
        "redis://hu sh",
        "redis://a,hush",
        "redis+cluster://hush,hush",
    ],
)
def test_no_part_of_a_url_is_repeated(url: str) -> None:
    """Whatever stands in the wrong place may be the password."""
    problem = refused(url)
    told = f"{problem} {problem.found} {problem.expected} {problem.hint} {problem.__cause__}"
    assert "hush" not in told and problem.found and problem.expected


def test_a_password_with_reserved_characters_is_told_how_to_be_written() -> None:
    """The likeliest reason why a generated password does not work."""
    for url in ("redis://:a/b@h", "redis://:a?b@h", "redis://:a#b@h", "redis://:a@b@h", "redis://:a%b@h"):
        assert "%2F for /" in refused(url).hint


@pytest.mark.parametrize(("text", "dialled"), [("h", "h"), ("10.0.0.1", "10.0.0.1"), ("::1", "::1"), ("[::1]", "::1")])
def test_a_host_alone(text: str, dialled: str) -> None:
    """As it is dialled; brackets belong to URLs."""
    assert host(text) == dialled


@pytest.mark.parametrize("text", ["", "h:1", "redis://h", "[h]", "[]", "[::1", "::1]", "::1%eth0", "a b", "a/b", "u@h", "a,b"])
def test_what_is_more_or_less_than_a_host_is_refused(text: str) -> None:
    """A URL or a port in the place of a host would be looked up as a name."""
    with pytest.raises(UnfitUrl):
        host(text)
