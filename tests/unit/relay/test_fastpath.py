"""Which form of the fast path is taken, that both are of one interface, and that the C form survives whatever is done to it.

What the two do with a stream is compared in tests/properties/test_fastpath.py.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import re
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from router.relay import fastpath
from router.relay.fastpath import BOUNDARY, MIDDLE, SLOW, PurePythonFastPath, hot_table
from router.relay.frames import TEXT, encode_frame
from tests.helpers.parts import require

SOURCE = Path(__file__).parents[3] / "accel" / "realtime_router_accel.c"
TYPE = "response.output_audio.delta"
FRAME = encode_frame(TEXT, f'{{"type":"{TYPE}","delta":"'.encode() + b"A" * 400)
NAME = "realtime_router_accel"


def compiled() -> Any:
    """The C form; the test is skipped where it is not built."""
    require("accelerator")
    return importlib.import_module(NAME).FastPath


@pytest.mark.parametrize("name", ["INTERFACE", "HOT_KEY_BYTES", "HOT_MASKED_KEY_BYTES", "MAX_HOT_TYPES", "FAIR_BYTES"])
def test_both_forms_have_the_same_constants(name: str) -> None:
    """Read from the source, so that it holds where nothing is built."""
    found = re.search(rf"^#define {name} (.+)$", SOURCE.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    number = 1
    for factor in found[1].strip("()").split("*"):
        number *= int(factor)
    assert number == getattr(fastpath, name)


def test_both_forms_have_the_same_modes() -> None:
    """The scanner sets them by number."""
    found = re.search(r"^enum \{ (.+) \};$", SOURCE.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    assert found[1] == f"SLOW = {SLOW}, BOUNDARY = {BOUNDARY}, MIDDLE = {MIDDLE}"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None, str], tuple[type, bool]]:
    """Choose as if the module with that INTERFACE were installed, ``None``: none were, with the variable set to a value."""

    def choose(interface: int | None, wish: str) -> tuple[type, bool]:
        # ``None`` in the place of a module is how Python says that it cannot be imported.
        module = None if interface is None else SimpleNamespace(INTERFACE=interface, FastPath=Compiled)
        monkeypatch.setitem(sys.modules, NAME, module)
        monkeypatch.setenv("REALTIME_ROUTER_ACCEL", wish)
        return fastpath._choose()

    return choose


class Compiled(PurePythonFastPath):
    """In the place of the C form."""


@pytest.mark.parametrize(
    ("interface", "wish", "expected"),
    [
        (fastpath.INTERFACE, "", (Compiled, True)),
        (fastpath.INTERFACE, "1", (Compiled, True)),
        (fastpath.INTERFACE, "0", (PurePythonFastPath, False)),
        (fastpath.INTERFACE + 1, "", (PurePythonFastPath, False)),
        (None, "", (PurePythonFastPath, False)),
        (None, "0", (PurePythonFastPath, False)),
    ],
)
def test_the_c_form_is_taken_where_it_fits(
    installed: Callable[[int | None, str], tuple[type, bool]], interface: int | None, wish: str, expected: tuple[type, bool]
) -> None:
    """Installed and of this interface, it is taken, unless the variable forbids it; everything else runs on Python."""
    assert installed(interface, wish) == expected


@pytest.mark.parametrize(
    ("interface", "words"), [(None, NAME), (fastpath.INTERFACE + 1, f"found interface {fastpath.INTERFACE + 1}, expected")]
)
def test_who_insists_on_the_c_form_is_told_that_it_is_missing(
    installed: Callable[[int | None, str], tuple[type, bool]], interface: int | None, words: str
) -> None:
    """A router that was sized for it must not start without it in silence."""
    with pytest.raises(ImportError, match=words):
        installed(interface, "1")


def hot(form: Any) -> Any:
    """A new object of a form, with a hot table."""
    fast = form(False, 1 << 20)
    fast.hot = hot_table([TYPE], masked=False)
    return fast


def test_a_new_c_form_looks_like_a_new_one_in_python() -> None:
    """Every attribute of the contract has the same first value, and may be set where it may be there."""
    form = compiled()
    for masked in (False, True):
        first, second = PurePythonFastPath(masked, 1000), form(masked, 1000)
        for name in PurePythonFastPath.__slots__:
            if name in ("_counts", "write", "slow"):
                continue
            assert getattr(second, name) == getattr(first, name), name
            assert type(getattr(second, name)) is type(getattr(first, name)), name
        for name in ("left", "entered", "entered_bytes", "events", "skipped_bytes", "mode"):
            setattr(second, name, 7)
            assert getattr(second, name) == 7
        second.waiting = True
        assert second.waiting is True
        assert second.write(b"") is None and second.slow(b"") is None
        assert second.take_counts() == first.take_counts()


def test_counts_beyond_32_bits() -> None:
    """A session may pass more than 4 GiB."""
    fast = hot(compiled())
    fast.skipped_bytes = fast.events = 1 << 40
    fast.data_received(FRAME)
    assert (fast.skipped_bytes, fast.events) == ((1 << 40) + len(FRAME), (1 << 40) + 1)


def test_a_second_init_leaves_nothing_of_before() -> None:
    """Neither the state nor the entry that was found last: what was hot must not pass with an empty table."""
    fast = hot(compiled())
    fast.data_received(FRAME + FRAME[:100])
    fast.waiting = True
    fast.__init__(False, 1 << 20)
    new = PurePythonFastPath(False, 1 << 20)
    for name in ("mode", "left", "entered", "entered_bytes", "events", "skipped_bytes", "waiting", "hot"):
        assert getattr(fast, name) == getattr(new, name), name
    assert fast.take_counts() == new.take_counts()
    assert fast.skip(FRAME) == 0


@pytest.mark.parametrize("data", [None, 1, "text", bytearray(FRAME), memoryview(FRAME)])
def test_only_bytes_are_taken(data: object) -> None:
    """A buffer that may change under it is refused, like everything that is no bytes."""
    fast = hot(compiled())
    for method in (fast.data_received, fast.skip):
        with pytest.raises(TypeError, match=f"found {type(data).__name__}, expected bytes"):
            method(data)


@pytest.mark.parametrize("table", [None, [], {1}])
def test_only_a_dict_is_a_table(table: object) -> None:
    """And the one of before stays."""
    fast = hot(compiled())
    with pytest.raises(TypeError, match="hot: expected a dict"):
        fast.hot = table
    with pytest.raises(TypeError, match="hot: expected a dict"):
        del fast.hot
    assert fast.skip(FRAME) == len(FRAME)


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        (None, TypeError),
        ((b"x",), TypeError),
        (("x", 0), TypeError),
        ((b"x", "0"), TypeError),
        ((b"x", -1), ValueError),
        ((b"x", 8), ValueError),
        ((b"x", 1 << 70), OverflowError),
    ],
)
def test_a_table_that_is_none_is_an_error(entry: object, error: type[Exception]) -> None:
    """Its places are used without a further look, so they are looked at first."""
    fast = compiled()(False, 1 << 20)
    fast.hot = {FRAME[4 : 4 + fastpath.HOT_KEY_BYTES]: entry}
    for _ in range(2):
        with pytest.raises(error):
            fast.data_received(FRAME)
    assert fast.take_counts() == [0] * 16


@pytest.mark.parametrize("state", [{"left": -1}, {"left": -(1 << 62)}, {"entered": 8}, {"entered": 1 << 60}])
def test_a_state_that_cannot_be_is_an_error(state: dict[str, int]) -> None:
    """Attributes are anybody's to set; no byte outside of the read and the counters is touched for that."""
    fast = hot(compiled())
    fast.mode, fast.left, fast.entered = MIDDLE, 10, 0
    for name, value in state.items():
        setattr(fast, name, value)
    with pytest.raises(ValueError, match="expected 0"):
        fast.data_received(FRAME)
    assert fast.take_counts() == [0] * 16


def test_leaving_without_having_entered_is_an_error() -> None:
    """There is nothing to count."""
    with pytest.raises(ValueError, match="entered: found place -1"):
        hot(compiled()).leave()


def test_an_object_without_init_is_harmless() -> None:
    """A subclass that forgets it gets errors, no crash."""
    form = compiled()
    fast = form.__new__(form)
    assert fast.skip(FRAME) == 0
    fast.mode = BOUNDARY
    assert fast.skip(FRAME) == 0
    for name in ("hot", "write", "slow"):
        with pytest.raises(AttributeError):
            getattr(fast, name)
    with pytest.raises(AttributeError, match="slow"):
        fast.data_received(FRAME)
    fast = hot(form)
    del fast.write
    with pytest.raises(AttributeError, match="write"):
        fast.data_received(FRAME)
    with pytest.raises(TypeError):
        form(False)
    with pytest.raises(TypeError):
        form("a", "b")


def test_what_a_callback_raises_comes_through() -> None:
    """From ``write`` the rest of the read is not handed on, as in Python; nothing is kept of it."""
    fast = hot(compiled())
    told: list[bytes] = []

    def refuse(data: bytes) -> None:
        raise ValueError("no more")

    fast.write, fast.slow = refuse, told.append
    for data in (FRAME, FRAME + b"\x89\x00"):
        with pytest.raises(ValueError, match="no more"):
            fast.data_received(data)
    fast.write, fast.slow = told.append, refuse
    with pytest.raises(ValueError, match="no more"):
        fast.data_received(FRAME + b"\x89\x00")
    assert told == [FRAME]


def test_endless_recursion_is_an_error() -> None:
    """A callback that feeds what it gets ends as such a thing ends in Python."""
    fast = hot(compiled())
    fast.write = fast.data_received
    with pytest.raises(RecursionError):
        fast.data_received(FRAME)


def test_a_callback_may_take_everything_away() -> None:
    """Attributes exchanged or deleted while a callback of this object runs, the callback itself among them."""
    fast = hot(compiled())
    told: list[bytes] = []

    def write(data: bytes) -> None:
        fast.hot = {}
        del fast.write
        fast.slow = told.append
        fast.__init__(False, 100)
        fast.slow = told.append
        gc.collect()

    fast.write = write
    del write
    fast.data_received(FRAME + b"\x89\x00")
    assert told == [b"\x89\x00"]


def test_a_table_may_be_exchanged_by_its_own_keys() -> None:
    """A comparison that runs code: the table that is being searched lives on, and what it said does not hold any more."""
    fast = compiled()(False, 1 << 20)
    key = FRAME[4 : 4 + fastpath.HOT_KEY_BYTES]
    runs = 0

    class Key(bytes):
        def __eq__(self, other: object) -> bool:
            nonlocal runs
            runs += 1
            fast.hot = {}
            gc.collect()
            return True

        def __hash__(self) -> int:
            return hash(key)

    fast.hot = {Key(): (FRAME[4:20], 0)}
    fast.data_received(FRAME)
    assert (runs, fast.hot, fast.take_counts()[0]) == (1, {}, 0)
    fast.data_received(FRAME)
    assert runs == 1


def test_nothing_is_leaked_and_nothing_is_freed_too_often() -> None:
    """Reference counts of all that comes in are the same after ten thousand reads, refusals and exchanges."""
    form = compiled()
    tables: list[Any] = [hot_table([TYPE], masked=False), {FRAME[4 : 4 + fastpath.HOT_KEY_BYTES]: (b"no", 9)}, {}]
    fast = form(False, 1 << 20)

    def write(data: bytes) -> None:
        fast.write = write

    def slow(data: bytes) -> None:
        raise ValueError

    data = [FRAME, FRAME + FRAME[:100], FRAME[100:] + b"\x89\x00", b"\x89\x00", FRAME * 100, b""]
    watched = [write, slow, *tables, *data, *tables[0], *tables[0].values(), form]

    def round_of_use() -> None:
        for table in tables:
            fast.__init__(False, 1 << 20)
            fast.write, fast.slow, fast.hot = write, slow, table
            for read in data:
                for method in (fast.data_received, fast.skip):
                    try:
                        method(read)
                    except ValueError:
                        fast.mode = BOUNDARY
            fast.take_counts()
        form(True, 1)

    round_of_use()
    before = [sys.getrefcount(item) for item in watched]
    for _ in range(300):
        round_of_use()
    after = [sys.getrefcount(item) for item in watched]
    assert after == before




def test_circles_are_collected() -> None:
    """An object that is reached through its own callbacks goes with them, whichever of its attributes holds the circle."""
    form = compiled()
    subclass: Any = type("Subclass", (form,), {"__slots__": ("__weakref__", "more")})
    enabled = gc.isenabled()
    gc.disable()
    try:
        for name in ("write", "slow", "hot", "more"):
            fast = subclass(False, 1000)
            fast.hot = hot_table([TYPE], masked=False)
            fast.skip(FRAME)
            setattr(fast, name, {"circle": fast.data_received} if name in ("hot", "more") else fast.data_received)
            gone = weakref.ref(fast)
            del fast
            assert gone() is not None
            gc.collect()
            assert gone() is None, name
        # The class itself is counted by its objects.
        gone_class = weakref.ref(subclass)
        del subclass
        gc.collect()
        assert gone_class() is None
    finally:
        if enabled:
            gc.enable()


def test_a_read_is_not_looked_at_beyond_its_end() -> None:
    """Bytes behind the end in memory that would make the frame hot are not part of it."""
    fast = hot(compiled())
    # A string of bytes whose length is set down afterwards: what follows its end in memory is known.
    data = bytes(bytearray(FRAME))
    length = ctypes.c_ssize_t.from_address(id(data) + 2 * ctypes.sizeof(ctypes.c_ssize_t))
    assert length.value == len(FRAME)
    length.value = 4 + fastpath.HOT_KEY_BYTES
    try:
        assert fast.skip(data) == 0
    finally:
        length.value = len(FRAME)
    assert fast.skip(data) == len(FRAME)
