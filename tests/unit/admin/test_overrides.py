"""What operators have said, for workers that begin later."""

from __future__ import annotations

import math
from typing import Any

import pytest

from router.admin.overrides import Configured, Overrides, configured_of
from tests.helpers.running import config_of, load_config

BASE = "http://127.0.0.1:9/v1"


def settings(**params: Any) -> Configured:
    """What a generation says of two deployments, d0 and d1."""
    return configured_of(load_config(config_of(BASE, BASE, **params)).settings)


def changed(before: Configured, **facts: Any) -> Configured:
    """Another generation, in which the first deployment is another one."""
    first = {**before["d0"], **facts}
    return {**{id: said for id, said in before.items() if id != "d0"}, str(first.pop("id", "d0")): first}


def test_words_add_up_and_are_taken_back() -> None:
    """Fields that are not said stay; null gives back; each word is a new version."""
    overrides, generation = Overrides(), settings()
    for args in ({"id": "d0", "state": "drain"}, {"id": "d0", "weight": 3}, {"id": "d1", "weight": 2.0}):
        overrides.note(args, generation)
    assert list(overrides.of(generation)) == [{"id": "d0", "state": "drain", "weight": 3}, {"id": "d1", "weight": 2.0}]
    overrides.note({"id": "d0", "state": None}, generation)
    overrides.note({"id": "d1", "weight": None}, generation)
    assert list(overrides.of(generation)) == [{"id": "d0", "weight": 3}] and overrides.version == 5


def test_a_word_is_of_the_file_that_it_was_said_to() -> None:
    """Once the file says something else itself, the word is void, and for good as soon as that generation is in force."""
    overrides, generation = Overrides(), settings()
    overrides.note({"id": "d0", "state": "drain", "weight": 3}, generation)
    heavier = changed(generation, weight=7.0)
    assert list(overrides.of(heavier)) == [{"id": "d0", "state": "drain"}]
    assert list(overrides.of(generation)) == [{"id": "d0", "state": "drain", "weight": 3}]
    overrides.settle(heavier)
    assert list(overrides.of(generation)) == [{"id": "d0", "state": "drain"}]
    overrides.settle(changed(generation, id="new"))
    assert list(overrides.of(generation)) == []


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"id": 1},
        {"id": "d0", "state": "up"},
        {"id": "d0", "state": ["drain"]},
        {"id": "d0", "weight": 0},
        {"id": "d0", "weight": -1.0},
        {"id": "d0", "weight": math.inf},
        {"id": "d0", "weight": math.nan},
        {"id": "d0", "weight": True},
        {"id": "d0", "weight": "1"},
    ],
)
def test_what_is_no_word(args: dict[str, Any]) -> None:
    """Nothing senseless is handed on to workers."""
    overrides = Overrides()
    with pytest.raises(ValueError, match="found"):
        overrides.note(args, settings())


def test_a_word_about_nobody_is_not_kept() -> None:
    """A typing error, of which there may be many."""
    overrides = Overrides()
    overrides.note({"id": "nobody", "state": "drain"}, settings())
    assert list(overrides.of(settings())) == []
