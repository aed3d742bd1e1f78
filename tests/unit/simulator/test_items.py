"""Items, their order and their cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.simulator.audio import PCM_24K, AudioBank
from router.simulator.items import MAX_ITEMS, Conversation, Item, Naming, Tokens, text_tokens
from router.simulator.schema import EventError


def words(item_id: str, text: str = "text") -> Item:
    """A user's text."""
    return Item(id=item_id, role="user", content=[{"type": "input_text", "text": text}])


def test_ids_are_unique_and_short() -> None:
    """Different kinds share one counter; ids fit the protocol's 32 characters."""
    naming = Naming("Ab3dEf6hIj9l")
    ids = [naming.new(kind) for kind in ("item", "event", "event", "resp", "call", "conv", "sess")]
    assert len(set(ids)) == len(ids)
    assert max(map(len, ids)) <= 32


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["end", "root", "0", "1", "2", "3"])), max_size=30))
def test_conversation_is_a_list_with_unique_ids(actions: list[tuple[int, str]]) -> None:
    """Adding anywhere behaves like a plain list of ids; a refused item changes nothing."""
    conversation, model = Conversation(), list[str]()
    for number, place in actions:
        item_id, after = str(number), None if place == "end" else place
        legal = item_id not in model and (after in (None, "root") or after in model)
        try:
            conversation.add(words(item_id), after=after)
            assert legal
            model.insert(len(model) if after is None else 0 if after == "root" else model.index(after) + 1, item_id)
        except EventError:
            assert not legal
        assert [item.id for item in conversation] == model
        for item in conversation:
            index = model.index(item.id)
            assert conversation.previous_id(item) == (model[index - 1] if index else None)
            assert conversation.get(item.id) is item


def test_conversation_has_a_longest_length() -> None:
    """Items beyond the bound push out the oldest."""
    conversation = Conversation()
    for number in range(MAX_ITEMS + 10):
        conversation.add(Item(id=str(number), role="user"))
    assert len(conversation) == MAX_ITEMS
    assert conversation.get("9") is None
    assert conversation.get("10") is not None


def test_context_forgets_the_oldest_first() -> None:
    """What does not fit the context is taken out, newest kept."""
    conversation = Conversation()
    for number in range(5):
        conversation.add(words(str(number), "x" * 40_000))
    assert conversation.context().total == 20_000
    assert [item.id for item in conversation] == ["3", "4"]


def test_tokens_by_kind() -> None:
    """Text by its letters, the user's sound by a tenth of a second, the assistant's by a twentieth, calls by their text."""
    assert text_tokens("12345") == 2
    assert words("a", "12345678").tokens == Tokens(text=2)
    heard = Item(id="b", role="user", content=[{"type": "input_audio", "transcript": "long transcript"}], heard_ms=2_000)
    assert heard.tokens == Tokens(audio=20)
    speech = AudioBank().speech("hello", PCM_24K)
    said = Item(id="c", role="assistant", content=[{"type": "output_audio", "transcript": "hello"}], speech=speech)
    assert said.tokens == Tokens(text=2, audio=speech.duration_ms * 20 // 1000)
    call = Item(id="d", kind="function_call", name="abcd", arguments="{}")
    assert call.tokens == Tokens(text=2)


def test_unknown_ids_of_any_type_are_not_found() -> None:
    """An id comes from a client and may be anything."""
    conversation = Conversation()
    unknown: tuple[object, ...] = (None, 5, [], {}, "x")
    for wrong in unknown:
        assert conversation.get(wrong) is None
    with pytest.raises(EventError):
        conversation.add(words("a"), after="x")
