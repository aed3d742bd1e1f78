"""Which folders tell of a change, what a file holds, and when it is complete."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from router import watch
from router.watch import SETTLED_S, changes, folders, marks_of, settled


def test_the_folder_of_a_plain_file(tmp_path: Path) -> None:
    """Editors replace the file: its folder tells."""
    assert folders(str(tmp_path / "config.yaml")) == {str(tmp_path)}


def test_every_link_of_a_config_map(tmp_path: Path) -> None:
    """Kubernetes swaps a link in the middle of the name."""
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "config.yaml").touch()
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "config.yaml").symlink_to("..data/config.yaml")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "router.yaml").symlink_to(tmp_path / "config.yaml")
    found = folders(str(tmp_path / "elsewhere" / "router.yaml"))
    assert found == {str(tmp_path / "elsewhere"), str(tmp_path), str(tmp_path / "..2026")}


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    """A name that leads nowhere is no reason to hang."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert folders(str(tmp_path / "a")) == {str(tmp_path)}


def test_marks_tell_contents_apart(tmp_path: Path) -> None:
    """Another content is another mark; no file is none; a folder and a pipe have no content."""
    file = tmp_path / "file"
    os.mkfifo(tmp_path / "pipe")
    names = [str(file), str(tmp_path), str(tmp_path / "pipe")]
    assert marks_of(names[:2]) == {names[0]: b"", names[1]: b""}
    file.write_text("one", encoding="utf-8")
    one = marks_of(names)
    file.write_text("two", encoding="utf-8")
    assert one[names[0]] != marks_of(names)[names[0]] != b""


async def test_a_file_that_grows_is_waited_for(tmp_path: Path) -> None:
    """What is half written may be a legal file."""
    file = tmp_path / "file"
    file.write_text("a", encoding="utf-8")
    waiting = asyncio.ensure_future(settled([str(file)], seen={}))
    for number in range(10):
        with file.open("a", encoding="utf-8") as opened:
            opened.write("b" * number)
        # Less than the time after which it counts as complete: the pace of a slow writer.
        await asyncio.sleep(0.05)
        assert not waiting.done()
    await waiting
    assert file.read_text(encoding="utf-8").startswith("ab")


async def test_only_a_file_that_was_there_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editor puts back what it has moved away; a key that was never there holds no edit up."""
    monkeypatch.setattr("router.watch.MOST_UNSETTLED_S", 3600.0)
    file, key = tmp_path / "file", tmp_path / "key"
    file.write_text("a", encoding="utf-8")
    names = [str(file), str(key)]
    seen = marks_of(names)
    async with asyncio.timeout(15):
        await settled(names, seen=seen)
    file.unlink()
    waiting = asyncio.ensure_future(settled(names, seen=seen))
    await asyncio.sleep(3 * SETTLED_S)
    assert not waiting.done()
    file.write_text("b", encoding="utf-8")
    async with asyncio.timeout(15):
        await waiting


async def test_a_fault_of_the_watcher_leaves_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """watchfiles has errors of its own, which come alone or in a group; a router that reads no edit any more is worse."""
    said: list[Exception] = []
    file = tmp_path / "file"

    async def broken(*_: object, **__: object) -> AsyncGenerator[object, None]:
        yield None
        raise ExceptionGroup("unhandled errors in a TaskGroup", [RuntimeError("error in underlying watcher")])

    monkeypatch.setattr("router.watch._import_awatch", lambda: broken)
    async with asyncio.timeout(15), contextlib.aclosing(changes(lambda: [str(file)], on_blind=said.append)) as told:
        for _ in range(4):
            await anext(told)
    assert len(said) == 1


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_change_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool) -> None:
    """In place, or by another file that takes the name; without a look now and then."""
    monkeypatch.setattr("router.watch.LOOK_S", 600.0)
    file = tmp_path / "file"
    file.write_text("one", encoding="utf-8")
    before = marks_of([str(file)])
    blind: list[Exception] = []
    async with asyncio.timeout(15), contextlib.aclosing(changes(lambda: [str(file)], on_blind=blind.append)) as told:
        # What has changed before the watch stood would be told by nobody: a look is due as soon as it does.
        await anext(told)
        if replaced:
            (tmp_path / "new").write_text("two", encoding="utf-8")
            (tmp_path / "new").replace(file)
        else:
            file.write_text("two", encoding="utf-8")
        await anext(told)
    assert marks_of([str(file)]) != before and blind == []


async def test_an_edit_before_the_watch_stands_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, for its library takes a while to load; and when a link leads to a folder that nobody has watched so far."""
    monkeypatch.setattr("router.watch.LOOK_S", 600.0)
    linked, now, later = (tmp_path / name for name in ("linked", "now", "later"))
    for folder in (now, later):
        folder.mkdir()
        (folder / "file").write_text("one", encoding="utf-8")
    linked.symlink_to(now / "file")
    load, before = watch._import_awatch, marks_of([str(linked)])

    def edited_meanwhile() -> object:
        linked.write_text(f"in {linked.resolve().parent.name}", encoding="utf-8")
        return load()

    monkeypatch.setattr("router.watch._import_awatch", edited_meanwhile)
    blind: list[Exception] = []
    async with asyncio.timeout(15), contextlib.aclosing(changes(lambda: [str(linked)], on_blind=blind.append)) as told:
        await anext(told)
        assert marks_of([str(linked)]) != before and linked.read_text(encoding="utf-8") == "in now"
        linked.unlink()
        linked.symlink_to(later / "file")
        while linked.read_text(encoding="utf-8") != "in later":
            await anext(told)
    assert blind == []


async def test_without_the_systems_help_files_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is not there cannot be watched, and may come; that is said once."""
    monkeypatch.setattr("router.watch.LOOK_S", 0.5)
    said: list[Exception] = []
    file = tmp_path / "later" / "file"
    async with asyncio.timeout(15), contextlib.aclosing(changes(lambda: [str(file)], on_blind=said.append)) as told:
        await anext(told)
        await anext(told)
        assert len(said) == 1
        file.parent.mkdir()
        await anext(told)
        await anext(told)
    assert len(said) == 1
