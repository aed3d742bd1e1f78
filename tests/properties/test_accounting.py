"""Whatever is repeated, reordered or spoilt: each id is billed once, and sums are sums of counts."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from router.accounting import CLIENT_TYPES, TRANSCRIPTION_COMPLETED, UPSTREAM_TYPES, Accounting
from router.relay.frames import BINARY, TEXT
from router.usage import USAGE_FIELDS, Usage, response_usage, transcription_usage
from tests.helpers.clock import ManualClock

COUNTS = st.integers(0, 10**6)
RESPONSES = st.fixed_dictionaries(
    {
        "total_tokens": COUNTS,
        "input_tokens": COUNTS,
        "output_tokens": COUNTS,
        "input_token_details": st.fixed_dictionaries({"audio_tokens": COUNTS, "cached_tokens": COUNTS}),
        "output_token_details": st.fixed_dictionaries({"audio_tokens": COUNTS}),
    }
)
TRANSCRIPTIONS = st.one_of(
    st.fixed_dictionaries({"type": st.just("tokens"), "total_tokens": COUNTS, "input_tokens": COUNTS, "output_tokens": COUNTS}),
    st.fixed_dictionaries({"type": st.just("duration"), "seconds": st.integers(0, 1000)}),
)
# Keys that are looked for, so that any JSON stands in the places that matter.
NAMES = """id type response usage error code status_details item_id content_index seconds total_tokens input_tokens
    input_token_details cached_tokens_details audio_tokens x""".split()
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)


class Books:
    """Accounting and the bills that it told."""

    def __init__(self) -> None:
        self.bills: list[Usage] = []
        self.it = Accounting(
            clock=ManualClock(),
            on_usage=self.bills.append,
            on_first_audio=lambda seconds: None,
            on_trouble=lambda code, kind: None,
            on_limits=lambda spent, seconds: None,
            on_tick=lambda now: None,
        )

    def tell(self, event: dict[str, Any]) -> None:
        """An upstream's event."""
        payload = orjson.dumps(event)
        self.it.message("upstream", TEXT, event["type"], len(payload), payload)


@st.composite
def bills(draw: st.DrawFn) -> tuple[list[dict[str, Any]], Usage, int]:
    """Events in any order with repeats, the right sum, and how many responses there are."""
    ids = draw(st.lists(st.text(min_size=1, max_size=12), unique=True, max_size=8))
    events: list[dict[str, Any]] = []
    total, turns = Usage(), 0
    event: dict[str, Any]
    for name in ids:
        if draw(st.booleans()):
            usage = draw(RESPONSES)
            turns += 1
            total += response_usage(usage)
            beside = draw(st.booleans())
            response: dict[str, Any] = {"id": name} if beside else {"id": name, "usage": usage}
            event = {"type": "response.done", "response": response, **({"usage": usage} if beside else {})}
        else:
            usage = draw(TRANSCRIPTIONS)
            total += transcription_usage(usage)
            event = {"type": TRANSCRIPTION_COMPLETED, "item_id": name, "content_index": 0, "usage": usage}
        events += [event] * draw(st.integers(1, 3))
    return draw(st.permutations(events)), total, turns


@given(bills())
def test_each_id_is_billed_once_in_any_order(given_bills: tuple[list[dict[str, Any]], Usage, int]) -> None:
    """Repeats and order change nothing: neither the sum, nor the sum of what was told, nor the number of turns."""
    events, total, turns = given_bills
    books = Books()
    for event in events:
        books.tell(event)
    assert books.it.usage == total
    assert sum(books.bills, Usage()) == total
    assert books.it.turns == turns


@given(st.lists(st.tuples(st.sampled_from(["response.done", "error", TRANSCRIPTION_COMPLETED]), JSON, JSON), max_size=6))
def test_no_event_makes_a_sum_anything_but_a_count(events: list[tuple[str, Any, Any]]) -> None:
    """Any JSON in any place: no exception, and every number is a count that is not negative."""
    books = Books()
    for name, first, second in events:
        body = first if isinstance(first, dict) else {"response": first}
        books.tell({**body, "usage": second, "type": name})
        books.tell({"type": name, "response": {"id": "a", "usage": first}, "error": second, "usage": first, "item_id": second})
    for field in USAGE_FIELDS:
        value = getattr(books.it.usage, field)
        assert isinstance(value, float if field == "transcription_seconds" else int)
        assert 0 <= value < 10**15
    assert sum(books.bills, Usage()) == books.it.usage


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["client", "upstream"]),
            st.sampled_from([TEXT, BINARY]),
            st.none() | st.sampled_from(sorted(CLIENT_TYPES | UPSTREAM_TYPES)) | st.text(max_size=8),
            st.integers(0, 10**7),
        ),
        max_size=40,
    )
)
def test_counts_add_up_and_their_labels_are_bounded(messages: list[tuple[Any, int, str | None, int]]) -> None:
    """Every message is in exactly one count, under a name of a fixed set, however often the counts are taken."""
    books = Books()
    taken: dict[tuple[str, str], tuple[int, int]] = {}
    for index, (side, opcode, name, size) in enumerate(messages):
        books.it.message(side, opcode, name, size, None)
        if index % 7 == 6 or index == len(messages) - 1:
            for key, (count, total) in books.it.take_counts().items():
                before = taken.get(key, (0, 0))
                taken[key] = (before[0] + count, before[1] + total)
    assert sum(count for count, _ in taken.values()) == len(messages)
    assert sum(total for _, total in taken.values()) == sum(size for *_, size in messages)
    assert {name for _, name in taken} <= CLIENT_TYPES | UPSTREAM_TYPES | {"binary", "other"}
    assert books.it.phase in ("idle", "turn")
