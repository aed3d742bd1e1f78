"""Keys and whom they belong to."""

from __future__ import annotations

import hashlib
import re

import pytest

from router.auth import Authenticator, Principal, new_key
from router.config.settings import KeySettings, Secret, ServerSettings
from router.errors import AuthenticationFailed, PermissionDenied

MASTER = "master-key-of-the-router"


class Clock:
    """Epoch seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def virtual(key: str, **changes: object) -> KeySettings:
    """Return the settings of a virtual key."""
    values: dict[str, object] = {"name": "team", "sha256": hashlib.sha256(key.encode()).hexdigest(), **changes}
    return KeySettings(**values)  # type: ignore[arg-type]  # the names are checked by the dataclass


def authenticator(*keys: KeySettings, master: str | None = MASTER, clock: Clock | None = None) -> Authenticator:
    """Return an authenticator for these keys."""
    server = ServerSettings(master_key=None if master is None else Secret(master), keys=keys)
    return Authenticator(server, wall_clock=clock or Clock())


def secrets_of(*values: str) -> list[Secret]:
    """Wrap values as a request's credentials."""
    return [Secret(value) for value in values]


def message_of(auth: Authenticator, *values: str) -> str:
    """Return what a refused client reads."""
    with pytest.raises(AuthenticationFailed) as caught:
        auth.authenticate(secrets_of(*values))
    return caught.value.public_message


def test_the_master_key() -> None:
    """The master key may do everything."""
    principal = authenticator().authenticate(secrets_of(MASTER))
    assert principal == Principal(name="master", is_master=True)
    assert principal.may_use("anything")


def test_a_virtual_key() -> None:
    """A virtual key brings its name, its groups and its limit."""
    auth = authenticator(virtual("rr-1", groups=frozenset({"a"}), max_sessions=3))
    principal = auth.authenticate(secrets_of("rr-1"))
    assert principal == Principal(name="team", groups=frozenset({"a"}), max_sessions=3)
    assert principal.may_use("a")
    assert not principal.may_use("b")


def test_a_group_that_is_not_allowed() -> None:
    """What a key may not use is refused with 403, without naming what there is."""
    principal = Principal(name="team", groups=frozenset({"a"}))
    principal.require("a")
    with pytest.raises(PermissionDenied) as caught:
        principal.require("b")
    assert "'a'" not in caught.value.public_message


def test_without_any_key_everybody_is_anonymous() -> None:
    """A keyless router asks for nothing and grants no admin rights."""
    auth = authenticator(master=None)
    assert auth.authenticate([]) == Principal(name="anonymous")
    assert auth.authenticate(secrets_of("whatever")) == Principal(name="anonymous")


def test_virtual_keys_alone_are_keys() -> None:
    """A router that has only virtual keys is not keyless."""
    auth = authenticator(virtual("rr-1"), master=None)
    assert auth.authenticate(secrets_of("rr-1")).name == "team"
    message_of(auth, "rr-2")
    message_of(auth)


def test_an_expired_key() -> None:
    """A key works until the second it expires, and then reads like one that never was."""
    clock = Clock()
    auth = authenticator(virtual("rr-1", expires_at=1_001.0), clock=clock)
    assert auth.authenticate(secrets_of("rr-1")).name == "team"
    clock.now = 1_001.0
    assert message_of(auth, "rr-1") == message_of(auth, "unknown")


@pytest.mark.parametrize(
    "bad",
    ["x", "", " ", f"{MASTER} ", MASTER[:-1], MASTER.upper(), "ключ", "\udcff\ud800", "k" * 8193, "k" * 5_000_000, "a\x00b"],
)
def test_every_bad_key_reads_the_same(bad: str) -> None:
    """One message for every kind of bad key, and it repeats nothing of it."""
    assert message_of(authenticator(virtual("rr-1")), bad) == "The API key is not valid."


def test_no_key_at_all_is_told_how() -> None:
    """A request without a key is told where to put one."""
    assert "Authorization: Bearer" in message_of(authenticator())


def test_any_valid_key_of_several_is_enough() -> None:
    """A placeholder beside the real key does no harm, and the first valid one counts."""
    auth = authenticator(virtual("rr-1"))
    assert auth.authenticate(secrets_of("placeholder", "rr-1")).name == "team"
    assert auth.authenticate(secrets_of("rr-1", MASTER)).name == "team"
    assert auth.authenticate(secrets_of(MASTER, "rr-1")).name == "master"


def test_only_so_many_keys_are_looked_at() -> None:
    """Not every one of a thousand guesses in one request is tried."""
    message_of(authenticator(), *(str(number) for number in range(8)), MASTER)


def test_a_key_beyond_ascii() -> None:
    """A master key in any script works."""
    assert authenticator(master="ключ-ключ-ключ").authenticate(secrets_of("ключ-ключ-ключ")).is_master


def test_a_hash_is_not_a_key() -> None:
    """What the configuration holds of a virtual key does not open anything."""
    message_of(authenticator(virtual("rr-1")), hashlib.sha256(b"rr-1").hexdigest())


def test_new_keys() -> None:
    """A new key has 256 random bits, is never the same, and its hash is what the configuration takes."""
    key, hashed = new_key()
    assert re.fullmatch(r"rr-[A-Za-z0-9_-]{43}", key)
    assert new_key()[0] != key
    scheme, _, digest = hashed.partition(":")
    assert scheme == "sha256"
    auth = authenticator(KeySettings(name="new", sha256=digest))
    assert auth.authenticate(secrets_of(key)).name == "new"
