"""The session's protocol, event by event; the host checks each event against the ``openai`` package's types."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.simulator.audio import PCMA, PCMU, AudioFormat
from router.simulator.shapes import BETA, GA, XAI, Shape
from tests.unit.simulator.host import Driver, error_of, kinds, silence, tone
from tests.unit.simulator.openai_events import GA_TYPES, check_beta, check_ga

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Tells the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
        "required": ["city", "unit"],
    },
}
CLOCK = {"type": "function", "name": "tell_time", "parameters": {"type": "object", "properties": {}}}
NO_DETECTION = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}


def last(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The response of a final ``response.done``."""
    assert events[-1]["type"] == "response.done"
    response: dict[str, Any] = events[-1]["response"]
    return response


# --- the check itself ---


@pytest.mark.parametrize("check", [check_ga, check_beta])
@pytest.mark.parametrize("spoilt", [{"surprise": 1}, {"conversation": {"id": "c", "surprise": 1}}, {"event_id": 7}])
def test_the_check_of_events_can_fail(check: Any, spoilt: dict[str, Any]) -> None:
    """An unknown field at any depth or a wrong type is found, else all other tests here would prove nothing."""
    good = {"type": "conversation.created", "event_id": "e", "conversation": {"id": "c", "object": "realtime.conversation"}}
    check(good)
    with pytest.raises((AssertionError, ValueError)):
        check(good | spoilt)


# --- beginning ---


def test_ga_opens_with_session_created() -> None:
    """The first event is the whole default configuration with id, model and expiry."""
    (event,) = Driver(GA).new()
    assert event["type"] == "session.created"
    session = event["session"]
    assert session["model"] == "voice-1"
    assert session["expires_at"] == 2_000_000_000
    assert session["audio"]["input"]["turn_detection"]["type"] == "server_vad"


def test_beta_opens_with_session_then_conversation() -> None:
    """The beta's second event names the conversation."""
    assert kinds(Driver(BETA).new()) == ["session.created", "conversation.created"]


def test_xai_opens_with_conversation_then_session() -> None:
    """xAI's first event is the conversation's; voice and turn detection stand at the top of its session."""
    conversation, created = Driver(XAI).new()
    assert conversation["type"] == "conversation.created"
    assert created["type"] == "session.created"
    assert created["session"]["voice"] == "ara"
    assert created["session"]["turn_detection"]["type"] == "server_vad"


# --- turns ---


def test_text_turn_has_the_whole_order_of_events() -> None:
    """A text answer's events come in the documented order, and its deltas add up to its text."""
    driver = Driver()
    driver.send("session.update", session={"type": "realtime", "output_modalities": ["text"]})
    assert kinds(driver.say("good morning")) == ["conversation.item.added", "conversation.item.done"]
    events = driver.ask()
    assert kinds(events) == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "rate_limits.updated",
        "response.done",
    ]
    said = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert said == "You said: good morning."
    assert last(events)["output"][0]["content"] == [{"type": "output_text", "text": said}]
    assert last(events)["status"] == "completed"


def test_audio_turn_has_the_whole_order_of_events() -> None:
    """A spoken answer's events come in the documented order, its transcript interleaved with its sound."""
    driver = Driver()
    driver.say("good morning to everybody")
    events = driver.ask()
    order = [kind for kind in kinds(events) if not kind.endswith(".delta")]
    assert order == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "rate_limits.updated",
        "response.done",
    ]
    deltas = [event for event in events if event["type"].endswith(".delta")]
    assert deltas[0]["type"] == "response.output_audio_transcript.delta"
    assert len(kinds(deltas)) > 4, "transcript and sound alternate"
    sound = b"".join(base64.b64decode(event["delta"]) for event in deltas if event["type"] == "response.output_audio.delta")
    item_id = last(events)["output"][0]["id"]
    (retrieved,) = driver.send("conversation.item.retrieve", item_id=item_id)
    assert base64.b64decode(retrieved["item"]["content"][0]["audio"]) == sound
    assert any(sound), "silence is no voice"


@pytest.mark.parametrize(("written", "audio_format"), [("audio/pcmu", PCMU), ("audio/pcma", PCMA)])
def test_audio_turn_in_g711(written: str, audio_format: AudioFormat) -> None:
    """An answer in G.711 lasts as long as its transcript takes at 8,000 bytes a second, and is not silent."""
    driver = Driver()
    driver.send("session.update", session={"type": "realtime", "audio": {"output": {"format": {"type": written}}}})
    driver.say("hello")
    events = driver.ask()
    assert last(events)["audio"]["output"]["format"] == {"type": written}
    sound = b"".join(base64.b64decode(e["delta"]) for e in events if e["type"] == "response.output_audio.delta")
    reference = driver.session.bank.speech("You said: hello.", audio_format)
    assert sound == reference.sound
    assert 500 < reference.duration_ms < 5_000


def test_function_is_called_when_the_text_names_it_and_its_output_is_answered() -> None:
    """The call has arguments from its schema and the text; its output makes the model speak."""
    driver = Driver()
    driver.send("session.update", session={"type": "realtime", "tools": [WEATHER, CLOCK]})
    driver.say("Please get weather in Lisbon, in celsius, for Lisbon")
    events = driver.ask()
    assert kinds(events) == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "conversation.item.done",
        "response.output_item.done",
        "rate_limits.updated",
        "response.done",
    ]
    (call,) = last(events)["output"]
    assert call["name"] == "get_weather"
    assert orjson.loads(call["arguments"]) == {"city": "Lisbon", "unit": "celsius"}
    done = next(event for event in events if event["type"] == "response.function_call_arguments.done")
    assert done["name"] == "get_weather"
    assert done["arguments"] == call["arguments"]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": '{"sky": "blue"}'}
    assert kinds(driver.send("conversation.item.create", item=output)) == ["conversation.item.added", "conversation.item.done"]
    answer = last(driver.ask())["output"][0]["content"][0]["transcript"]
    assert "blue" in answer


def test_several_functions_make_one_response_of_several_items() -> None:
    """A text that names two tools calls both in one response, with rising output indexes."""
    driver = Driver()
    driver.send("session.update", session={"type": "realtime", "tools": [WEATHER, CLOCK]})
    driver.say("get_weather for Oslo and tell time")
    events = driver.ask()
    assert [item["name"] for item in last(events)["output"]] == ["get_weather", "tell_time"]
    assert [e["output_index"] for e in events if e["type"] == "response.output_item.added"] == [0, 1]


@pytest.mark.parametrize(
    ("choice", "called"),
    [("none", []), ("required", ["get_weather"]), ({"type": "function", "name": "tell_time"}, ["tell_time"]), ("auto", [])],
)
def test_tool_choice_demands_or_forbids_calls(choice: Any, called: list[str]) -> None:
    """``tool_choice`` of one response decides when the text names no tool."""
    driver = Driver()
    driver.send("session.update", session={"type": "realtime", "tools": [WEATHER, CLOCK]})
    driver.say("hello")
    output = last(driver.ask(tool_choice=choice))["output"]
    assert [item["name"] for item in output if item["type"] == "function_call"] == called


def test_failed_turn_is_a_response_done_with_status_failed() -> None:
    """A failure of the answer is told in its details, not by an ``error`` event."""
    driver = Driver(failure={"type": "insufficient_quota", "code": "insufficient_quota", "message": "No."})
    driver.say("hello")
    response = last(driver.ask())
    assert response["status"] == "failed"
    assert response["status_details"]["error"]["code"] == "insufficient_quota"


@pytest.mark.parametrize("modality", ["text", "audio"])
def test_output_token_limit_makes_the_response_incomplete(modality: str) -> None:
    """An answer stops at the limit and says so."""
    driver = Driver(reply="one two three four five six seven eight nine ten eleven twelve thirteen fourteen")
    driver.say("count")
    response = last(driver.ask(output_modalities=[modality], max_output_tokens=10))
    assert response["status"] == "incomplete"
    assert response["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"
    assert 0 < response["usage"]["output_tokens"] <= 10


# --- speech of the user ---


def test_server_vad_turns_speech_into_an_answer() -> None:
    """Loud sound then silence gives started, stopped, committed, the item, its transcript and a response."""
    driver = Driver(heard="what time is it")
    transcription = {"model": "gpt-4o-transcribe"}
    driver.send("session.update", session={"type": "realtime", "audio": {"input": {"transcription": transcription}}})
    assert driver.append(silence(0.5)) == []
    (started,) = driver.append(tone(1.0))
    assert started["type"] == "input_audio_buffer.speech_started"
    assert started["audio_start_ms"] == 200, "300 ms of padding before 500 ms"
    events = driver.append(silence(0.6))
    assert kinds(events) == [
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "response.created",
    ]
    assert 1900 <= events[0]["audio_end_ms"] <= 2100
    assert {started["item_id"]} == {event["item_id"] for event in events[:2]}
    rest = driver.run()
    transcript = next(e for e in rest if e["type"] == "conversation.item.input_audio_transcription.completed")
    assert transcript["transcript"] == "what time is it"
    assert transcript["usage"]["type"] == "tokens"
    deltas = [e["delta"] for e in rest if e["type"] == "conversation.item.input_audio_transcription.delta"]
    assert "".join(deltas) == "what time is it"
    done = next(event for event in rest if event["type"] == "response.done")
    assert "what time is it" in done["response"]["output"][0]["content"][0]["transcript"]
    (retrieved,) = driver.send("conversation.item.retrieve", item_id=started["item_id"])
    part = retrieved["item"]["content"][0]
    assert part["transcript"] == "what time is it"
    assert len(base64.b64decode(part["audio"])) > 48_000, "the second of speech was kept"


def test_vad_works_on_pieces_of_any_size_and_in_g711() -> None:
    """How the sound is cut into appends does not matter, and neither does its encoding."""
    driver = Driver()
    driver.send("session.update", session={"type": "realtime", "audio": {"input": {"format": {"type": "audio/pcmu"}}}})
    sound = silence(0.2, PCMU) + tone(0.5, PCMU) + silence(0.7, PCMU)
    events = []
    for at in range(0, len(sound), 77):
        events += driver.append(sound[at : at + 77])
    assert kinds(events)[:3] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
    ]


def test_whisper_bills_transcription_by_duration() -> None:
    """The usage of a transcription is seconds for whisper models."""
    driver = Driver()
    audio = {"input": {"transcription": {"model": "whisper-1"}, "turn_detection": None}}
    driver.send("session.update", session={"type": "realtime", "audio": audio})
    driver.append(tone(1.5))
    driver.send("input_audio_buffer.commit")
    completed = driver.run()[-1]
    assert completed["usage"] == {"type": "duration", "seconds": 1.5}
    assert completed["transcript"] == "1.5 seconds of speech"


def test_vad_without_create_response_only_commits() -> None:
    """``create_response: false`` leaves the answer to the client."""
    driver = Driver()
    detection = {"type": "server_vad", "create_response": False}
    driver.send("session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": detection}}})
    events = driver.append(tone(0.5) + silence(0.7))
    assert kinds(events)[-1] == "conversation.item.done"
    assert not driver.host.jobs


def test_barge_in_cancels_the_answer() -> None:
    """Speech during an answer ends it with ``turn_detected``, all open parts closed first."""
    driver = Driver(reply="a long answer that goes on and on and on")
    driver.say("tell me")
    driver.send("response.create")
    assert driver.steps(5)[-1]["type"] == "response.output_audio.delta"
    events = driver.append(tone(0.2))
    assert kinds(events) == [
        "input_audio_buffer.speech_started",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "rate_limits.updated",
        "response.done",
    ]
    assert last(events)["status"] == "cancelled"
    assert last(events)["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    assert last(events)["output"][0]["status"] == "incomplete"
    assert not driver.host.jobs


def test_without_interrupt_response_an_answer_goes_on() -> None:
    """``interrupt_response: false`` lets the answer end; the turn's own answer is refused meanwhile."""
    driver = Driver(reply="a long answer that goes on and on and on")
    detection = {"type": "server_vad", "interrupt_response": False}
    driver.send("session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": detection}}})
    driver.say("tell me")
    driver.send("response.create")
    driver.steps(4)
    events = driver.append(tone(0.3) + silence(0.7))
    assert events[-1]["error"]["code"] == "conversation_already_has_active_response"
    assert last(driver.run())["status"] == "completed"


def test_manual_commit_makes_an_item_and_empties_the_buffer() -> None:
    """Push to talk: commit, then a second commit finds nothing."""
    driver = Driver()
    driver.send("session.update", session=NO_DETECTION)
    assert driver.append(tone(0.4)) == []
    events = driver.send("input_audio_buffer.commit")
    assert kinds(events) == ["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"]
    assert events[0]["item_id"] == events[1]["item"]["id"]
    assert error_of(driver.send("input_audio_buffer.commit"))["code"] == "input_audio_buffer_commit_empty"
    assert "0.4 seconds" in last(driver.ask())["output"][0]["content"][0]["transcript"]


def test_clear_empties_the_buffer() -> None:
    """A cleared buffer has nothing to commit, and a turn under way is forgotten."""
    driver = Driver()
    driver.append(tone(0.4))
    assert kinds(driver.send("input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]
    assert error_of(driver.send("input_audio_buffer.commit"))["code"] == "input_audio_buffer_commit_empty"
    assert driver.append(silence(1.0)) == []


def test_kept_sound_is_bounded() -> None:
    """A session keeps no more of a turn's sound than it may, and none of the silence between turns."""
    driver = Driver(max_sound=10_000)
    driver.append(silence(3.0))
    assert len(driver.session._buffer or b"") <= 14_400
    driver.send("session.update", session=NO_DETECTION)
    driver.append(tone(1.0))
    assert driver.session._buffer is None
    committed = driver.send("input_audio_buffer.commit")[0]
    (retrieved,) = driver.send("conversation.item.retrieve", item_id=committed["item_id"])
    assert retrieved["item"]["content"][0]["audio"] is None


# --- cancel, truncate, delete ---


def test_cancel_ends_the_answer_and_the_next_may_begin() -> None:
    """``response.cancel`` gives status cancelled; a second one finds nothing active; a new answer completes."""
    driver = Driver()
    driver.send("session.update", session={"type": "realtime", "output_modalities": ["text"]})
    driver.say("hello")
    created = driver.send("response.create")[0]
    driver.steps(3)
    events = driver.send("response.cancel", response_id=created["response"]["id"])
    assert last(events)["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert last(events)["usage"]["output_tokens"] > 0
    assert error_of(driver.send("response.cancel"))["code"] == "response_cancel_not_active"
    assert last(driver.ask())["status"] == "completed"


def test_cancel_before_the_first_item_and_in_a_function_call() -> None:
    """A cancelled answer without items has none; a cancelled call is incomplete."""
    driver = Driver()
    driver.send("session.update", session={"type": "realtime", "tools": [WEATHER]})
    driver.say("hello")
    driver.send("response.create")
    assert last(driver.send("response.cancel"))["output"] == []
    driver.say("get weather in Rome")
    driver.send("response.create")
    driver.steps(3)
    (call,) = last(driver.send("response.cancel"))["output"]
    assert call["status"] == "incomplete"


def test_truncate_cuts_sound_and_transcript() -> None:
    """A truncated item lasts as long as was heard, without a transcript; it cannot be cut longer."""
    driver = Driver()
    driver.say("hello there, how are you")
    item_id = last(driver.ask())["output"][0]["id"]
    cut = {"item_id": item_id, "content_index": 0, "audio_end_ms": 250}
    (event,) = driver.send("conversation.item.truncate", **cut)
    assert {name: event[name] for name in cut} == cut
    (retrieved,) = driver.send("conversation.item.retrieve", item_id=item_id)
    part = retrieved["item"]["content"][0]
    assert part["transcript"] is None
    assert len(base64.b64decode(part["audio"])) == 250 * 48
    error = error_of(driver.send("conversation.item.truncate", **(cut | {"audio_end_ms": 251})))
    assert (error["code"], error["param"]) == ("invalid_value", "audio_end_ms")


def test_delete_removes_an_item() -> None:
    """A deleted item is gone from the conversation and from the context's cost."""
    driver = Driver()
    added = driver.say("a text of some length that costs a few tokens")[0]
    before = driver.session.conversation.context().total
    (event,) = driver.send("conversation.item.delete", item_id=added["item"]["id"])
    assert event["item_id"] == added["item"]["id"]
    assert driver.session.conversation.context().total < before
    code = error_of(driver.send("conversation.item.retrieve", item_id=added["item"]["id"]))["code"]
    assert code == "item_retrieve_invalid_item_id"


# --- items ---


def test_items_go_where_previous_item_id_says() -> None:
    """``root`` puts first, an id puts behind it, nothing appends; an unknown id adds nothing."""
    driver = Driver()
    driver.say("b", id="b")
    assert driver.say("d", id="d")[0]["previous_item_id"] == "b"
    message = {"type": "message", "role": "user", "content": []}
    first = driver.send("conversation.item.create", previous_item_id="root", item=message | {"id": "a"})
    assert first[0]["previous_item_id"] is None
    assert driver.send("conversation.item.create", previous_item_id="b", item=message | {"id": "c"})[0]["previous_item_id"] == "b"
    error = error_of(driver.send("conversation.item.create", previous_item_id="nowhere", item=message))
    assert error["param"] == "previous_item_id"
    assert [item.id for item in driver.session.conversation] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("item", "code", "param"),
    [
        (None, "missing_required_parameter", "item"),
        ([], "invalid_value", "item"),
        ({"type": "tune"}, "invalid_value", "item.type"),
        ({"type": "message", "content": []}, "missing_required_parameter", "item.role"),
        ({"type": "message", "role": "boss", "content": []}, "invalid_value", "item.role"),
        ({"type": "message", "role": "user"}, "missing_required_parameter", "item.content"),
        ({"type": "message", "role": "user", "content": {}}, "invalid_value", "item.content"),
        ({"type": "message", "role": "user", "content": [1]}, "invalid_value", "item.content[0]"),
        ({"type": "message", "role": "user", "content": [{}]}, "missing_required_parameter", "item.content[0].type"),
        (
            {"type": "message", "role": "user", "content": [{"type": "input_text"}]},
            "missing_required_parameter",
            "item.content[0].text",
        ),
        (
            {"type": "message", "role": "user", "content": [{"type": "output_text", "text": "x"}]},
            "invalid_value",
            "item.content[0].type",
        ),
        (
            {"type": "message", "role": "assistant", "content": [{"type": "output_audio", "audio": "AAAA"}]},
            "missing_required_parameter",
            "item.content[0].text",
        ),
        (
            {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": "*"}]},
            "invalid_value",
            "item.content[0].audio",
        ),
        ({"type": "message", "role": "user", "content": [], "id": "x" * 33}, "string_above_max_length", "item.id"),
        ({"type": "message", "role": "user", "content": [], "id": "taken"}, "item_create_duplicate_item_id", "item.id"),
        ({"type": "function_call", "name": "f"}, "missing_required_parameter", "item.arguments"),
        ({"type": "function_call_output", "call_id": "c", "output": "x"}, "invalid_tool_call_id", "item.call_id"),
    ],
)
def test_bad_items_are_refused_with_code_and_place(item: Any, code: str, param: str) -> None:
    """Each kind of bad item has its documented code and says where it is wrong; nothing is added."""
    driver = Driver()
    driver.say("hello", id="taken")
    error = error_of(driver.send("conversation.item.create", event_id="mine", item=item))
    assert (error["code"], error["param"], error["event_id"]) == (code, param, "mine")
    assert len(driver.session.conversation) == 1


def test_history_can_be_replayed() -> None:
    """What a router replays on another upstream is accepted: system, user, image, assistant text, a call and its output."""
    driver = Driver()
    history = [
        {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "be kind"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": base64.b64encode(tone(1)).decode()}]},
        {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hello"}]},
        {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "42"},
    ]
    for item in history:
        assert kinds(driver.send("conversation.item.create", item=item)) == ["conversation.item.added", "conversation.item.done"]
    usage = last(driver.ask())["usage"]["input_token_details"]
    assert usage["audio_tokens"] == 10
    assert usage["image_tokens"] > 0


# --- responses ---


def test_one_answer_at_a_time_in_the_conversation() -> None:
    """A second ``response.create`` is refused while one runs, one beside the conversation is not."""
    driver = Driver()
    driver.say("hello")
    driver.send("response.create")
    assert error_of(driver.send("response.create"))["code"] == "conversation_already_has_active_response"
    beside = driver.send("response.create", response={"conversation": "none"})
    assert kinds(beside) == ["response.created"]
    done = [event["response"] for event in driver.run() if event["type"] == "response.done"]
    assert [response["status"] for response in done] == ["completed", "completed"]


def test_out_of_band_response_leaves_the_conversation_alone() -> None:
    """``conversation: none`` with own input and metadata: no item events, no conversation id, metadata echoed."""
    driver = Driver()
    reference = driver.say("the question", id="q")[0]["item"]["id"]
    given = [
        {"type": "item_reference", "id": reference},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "classify"}]},
    ]
    events = driver.ask(conversation="none", metadata={"topic": "test"}, input=given, output_modalities=["text"])
    assert not [kind for kind in kinds(events) if kind.startswith("conversation.")]
    assert last(events)["metadata"] == {"topic": "test"}
    assert last(events)["conversation_id"] is None
    assert last(events)["output"][0]["content"][0]["text"] == "You said: classify."
    assert len(driver.session.conversation) == 1
    bad = driver.send("response.create", response={"input": [{"type": "item_reference", "id": "nowhere"}]})
    assert error_of(bad)["param"] == "response.input[0].id"


def test_usage_grows_with_the_context_and_is_cached() -> None:
    """Every turn bills the whole context again; what the turn before had is cached in blocks; parts add up to totals."""
    driver = Driver()
    driver.send("session.update", session={"type": "realtime", "instructions": "Be brief. " * 60})
    usages = []
    for _ in range(3):
        driver.say("tell me something about the weather, please")
        usages.append(last(driver.ask())["usage"])
    inputs = [usage["input_tokens"] for usage in usages]
    assert inputs == sorted(set(inputs))
    cached = [usage["input_token_details"]["cached_tokens"] for usage in usages]
    assert cached[0] == 0
    assert 0 < cached[1] <= inputs[0]
    assert cached[1] <= cached[2] <= inputs[1]
    for usage in usages:
        details, output = usage["input_token_details"], usage["output_token_details"]
        assert usage["input_tokens"] == sum(details[f"{kind}_tokens"] for kind in ("text", "audio", "image"))
        assert details["cached_tokens"] == sum(details["cached_tokens_details"].values())
        assert usage["output_tokens"] == output["text_tokens"] + output["audio_tokens"]
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        assert output["audio_tokens"] > output["text_tokens"] > 0


def test_context_is_bounded() -> None:
    """The oldest items go when the context is full, so that a long session stays small."""
    driver = Driver()
    for _ in range(40):
        driver.say("x" * 8_000)
    assert driver.session.conversation.context().total <= 28_000
    assert len(driver.session.conversation) < 40


def test_rate_limits_fall_with_use() -> None:
    """Each answer takes its tokens and one request from the account."""
    driver = Driver()
    remaining = []
    for _ in range(2):
        driver.say("hello")
        event = next(event for event in driver.ask() if event["type"] == "rate_limits.updated")
        remaining.append({limit["name"]: limit["remaining"] for limit in event["rate_limits"]})
    assert remaining[1]["requests"] == remaining[0]["requests"] - 1
    assert remaining[1]["tokens"] < remaining[0]["tokens"]


# --- session.update ---


def test_session_update_changes_only_what_is_there_and_echoes_all() -> None:
    """Fields that are not sent stay; empty text, empty list and null clear; the echo is complete."""
    driver = Driver()
    before = driver.host.events[0]["session"]
    session = {"type": "realtime", "instructions": "be brief", "tools": [WEATHER], "audio": {"output": {"voice": "cedar"}}}
    (event,) = driver.send("session.update", session=session)
    now = event["session"]
    assert (now["instructions"], now["tools"], now["audio"]["output"]["voice"]) == ("be brief", [WEATHER], "cedar")
    assert now["audio"]["input"] == before["audio"]["input"]
    assert now["audio"]["output"]["format"] == before["audio"]["output"]["format"]
    assert now.keys() == before.keys()
    detection = {"threshold": 0.7}
    (event,) = driver.send("session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": detection}}})
    merged = event["session"]["audio"]["input"]["turn_detection"]
    assert (merged["threshold"], merged["silence_duration_ms"]) == (0.7, 500)
    clear = {"type": "realtime", "instructions": "", "tools": [], "audio": {"input": {"turn_detection": None}}}
    (event,) = driver.send("session.update", session=clear)
    assert event["session"]["instructions"] == ""
    assert event["session"]["tools"] == []
    assert event["session"]["audio"]["input"]["turn_detection"] is None
    assert event["session"]["audio"]["output"]["voice"] == "cedar"


def test_semantic_vad_has_its_own_fields() -> None:
    """Another type of turn detection starts from its own defaults."""
    driver = Driver()
    detection = {"type": "semantic_vad", "eagerness": "high"}
    (event,) = driver.send("session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": detection}}})
    assert event["session"]["audio"]["input"]["turn_detection"] == {
        "type": "semantic_vad",
        "eagerness": "high",
        "create_response": True,
        "interrupt_response": True,
    }
    assert kinds(driver.append(tone(0.3) + silence(0.4)))[:2] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
    ]


@pytest.mark.parametrize(
    ("session", "code", "param"),
    [
        (None, "invalid_value", "session"),
        ({}, "missing_required_parameter", "session.type"),
        ({"type": "transcription"}, "invalid_value", "session.type"),
        ({"type": "realtime", "voice": "ara"}, "unknown_parameter", "session.voice"),
        ({"type": "realtime", "turn_detection": None}, "unknown_parameter", "session.turn_detection"),
        ({"type": "realtime", "model": "another"}, "invalid_value", "session.model"),
        ({"type": "realtime", "output_modalities": ["text", "audio"]}, "invalid_value", "session.output_modalities"),
        ({"type": "realtime", "output_modalities": ["smell"]}, "invalid_value", "session.output_modalities[0]"),
        ({"type": "realtime", "instructions": 5}, "invalid_value", "session.instructions"),
        ({"type": "realtime", "tools": [{"type": "function"}]}, "missing_required_parameter", "session.tools[0].name"),
        (
            {"type": "realtime", "audio": {"input": {"format": {"type": "audio/pcm", "rate": 8000}}}},
            "invalid_value",
            "session.audio.input.format.rate",
        ),
        (
            {"type": "realtime", "audio": {"input": {"turn_detection": {"threshold": 2}}}},
            "invalid_value",
            "session.audio.input.turn_detection.threshold",
        ),
    ],
)
def test_bad_session_updates_change_nothing(session: Any, code: str, param: str) -> None:
    """A refused update names code and place and leaves the configuration as it was."""
    driver = Driver()
    before = orjson.dumps(driver.session.config)
    error = error_of(driver.send("session.update", event_id="u1", session=session))
    assert (error["code"], error["param"], error["event_id"]) == (code, param, "u1")
    assert orjson.dumps(driver.session.config) == before


def test_own_model_may_be_repeated() -> None:
    """SDKs put the model into ``session.update``; the session's own is fine."""
    (event,) = Driver().send("session.update", session={"type": "realtime", "model": "voice-1"})[-1:]
    assert event["type"] == "session.updated"


def test_voice_is_settled_by_the_first_sound() -> None:
    """After the model spoke its voice cannot change, though the same may be sent again."""
    driver = Driver()
    driver.say("hello")
    driver.ask()
    other = {"type": "realtime", "audio": {"output": {"voice": "cedar"}}}
    assert error_of(driver.send("session.update", session=other))["code"] == "cannot_update_voice"
    same = {"type": "realtime", "audio": {"output": {"voice": "marin"}}}
    assert kinds(driver.send("session.update", session=same)) == ["session.updated"]


# --- bad input ---


@pytest.mark.parametrize(
    ("raw", "code", "param"),
    [
        (b"{", "invalid_event", None),
        (b"\xff\xfe", "invalid_event", None),
        (b"[]", "invalid_event", None),
        (b"null", "invalid_event", None),
        (b"{}", "invalid_event", "type"),
        (b'{"type": "no.such"}', "invalid_value", "type"),
        (b'{"type": 5}', "invalid_value", "type"),
        (b'{"type": ["response.create"]}', "invalid_value", "type"),
        (b'{"type": "response.create", "event_id": 7}', "invalid_value", "event_id"),
        (orjson.dumps({"type": "response.create", "event_id": "x" * 513}), "string_above_max_length", "event_id"),
        (b'{"type": "input_audio_buffer.append"}', "missing_required_parameter", "audio"),
        (b'{"type": "input_audio_buffer.append", "audio": 5}', "invalid_value", "audio"),
        (b'{"type": "input_audio_buffer.append", "audio": "no base64!"}', "invalid_value", "audio"),
        (b'{"type": "conversation.item.delete"}', "missing_required_parameter", "item_id"),
        (b'{"type": "conversation.item.delete", "item_id": {}}', "item_delete_invalid_item_id", "item_id"),
        (b'{"type": "conversation.item.truncate", "item_id": "x"}', "item_truncate_invalid_item_id", "item_id"),
        (b'{"type": "response.create", "response": 5}', "invalid_value", "response"),
        (b'{"type": "response.create", "response": {"voice": "x"}}', "unknown_parameter", "response.voice"),
        (b'{"type": "response.create", "response": {"metadata": {"a": 1}}}', "invalid_value", "response.metadata.a"),
        (b'{"type": "output_audio_buffer.clear"}', "invalid_value", "type"),
    ],
)
def test_bad_events_get_an_error_and_the_session_goes_on(raw: bytes, code: str, param: str | None) -> None:
    """Whatever is wrong with an event is told with a documented code; the next turn works."""
    driver = Driver()
    driver.new()
    driver.session.receive(raw)
    error = error_of(driver.new())
    assert (error["code"], error["param"]) == (code, param)
    driver.say("hello")
    assert last(driver.ask())["status"] == "completed"


def test_binary_is_refused_where_it_was_not_agreed_on() -> None:
    """OpenAI's protocol is text only."""
    driver = Driver()
    driver.new()
    driver.session.receive_binary(b"\x00\x01")
    assert error_of(driver.new())["code"] == "invalid_event"


@pytest.mark.parametrize("depth", [200, 900])
def test_deep_nesting_is_an_error_and_not_a_crash(depth: int) -> None:
    """What cannot be echoed is refused, and the configuration stays usable."""
    driver = Driver()
    driver.new()
    schema = b'{"a":' * depth + b"1" + b"}" * depth
    tool = b'{"type":"function","name":"f","parameters":' + schema + b"}"
    driver.session.receive(b'{"type":"session.update","session":{"type":"realtime","tools":[' + tool + b"]}}")
    assert kinds(driver.new()) in (["error"], ["session.updated"])
    assert kinds(driver.send("session.update", session={"type": "realtime"})) == ["session.updated"]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_WORDS = st.sampled_from(
    "type session item response audio input output role content tools realtime message user turn_detection server_vad item_id "
    "format metadata text none function_call audio/pcm voice conversation id".split()
)
_NEAR_JSON = st.recursive(
    _JSON | _WORDS, lambda inner: st.dictionaries(_WORDS, inner, max_size=5) | st.lists(inner, max_size=3), max_leaves=15
)


@given(shape=st.sampled_from([GA, BETA, XAI]), events=st.lists(st.tuples(st.integers(0, 11), _NEAR_JSON), max_size=6))
def test_no_event_breaks_a_session(shape: Shape, events: list[tuple[int, Any]]) -> None:
    """Whatever JSON comes, the answers are valid events and the session still works."""
    driver = Driver(shape)
    handled = sorted(driver.session._handlers)
    for index, body in events:
        event = {"type": handled[index % len(handled)]} | (body if isinstance(body, dict) else {"session": body, "item": body})
        driver.session.receive(orjson.dumps(event | {"type": handled[index % len(handled)]}))
    driver.run()
    driver.new()
    events_now = driver.send("input_audio_buffer.clear")
    assert kinds(events_now) == ["input_audio_buffer.cleared"]


@given(st.binary(max_size=200))
def test_no_bytes_break_a_session(raw: bytes) -> None:
    """Whatever bytes come, the answer is an event."""
    driver = Driver()
    driver.new()
    driver.session.receive(raw)
    assert all(event["type"] in GA_TYPES for event in driver.new())


# --- the end ---


def test_expiry_is_an_error_then_1001() -> None:
    """At its longest duration a session says so and closes with 1001."""
    driver = Driver()
    driver.new()
    driver.session.expire(60)
    assert error_of(driver.new())["code"] == "session_expired"
    assert driver.host.closed == (1001, "Your session hit the maximum duration of 60 minutes.")


# --- transcription sessions ---


def test_transcription_session_transcribes_and_does_not_answer() -> None:
    """``intent=transcription``: its own session type, transcripts without a setting, and no responses."""
    driver = Driver(transcription=True)
    (created,) = driver.new()
    assert created["session"]["type"] == "transcription"
    assert "model" not in created["session"]
    (updated,) = driver.send(
        "session.update",
        session={"type": "transcription", "audio": {"input": {"transcription": {"model": "whisper-1", "language": "pt"}}}},
    )
    assert updated["session"]["audio"]["input"]["transcription"]["language"] == "pt"
    events = driver.append(tone(0.5) + silence(0.7)) + driver.run()
    assert "conversation.item.input_audio_transcription.completed" in kinds(events)
    assert not [kind for kind in kinds(events) if kind.startswith("response.")]
    assert error_of(driver.send("response.create"))["code"] == "invalid_value"


def test_beta_transcription_session_has_its_own_events() -> None:
    """The beta names the session's events after its kind."""
    driver = Driver(BETA, transcription=True)
    assert kinds(driver.new()) == ["transcription_session.created"]
    session = {"input_audio_transcription": {"model": "gpt-4o-transcribe"}, "input_audio_format": "g711_ulaw"}
    (event,) = driver.send("transcription_session.update", session=session)
    assert event["type"] == "transcription_session.updated"
    assert event["session"]["input_audio_format"] == "g711_ulaw"


# --- beta ---


def test_beta_turns_have_beta_names() -> None:
    """Audio, text, function, speech and errors of the beta validate against the beta's types and bear its names."""
    driver = Driver(BETA, heard="hello")
    driver.new()
    driver.send("session.update", session={"tools": [WEATHER], "input_audio_transcription": {"model": "whisper-1"}})
    assert kinds(driver.say("hello")) == ["conversation.item.created"]
    events = driver.ask()
    assert {"response.audio.delta", "response.audio_transcript.delta", "response.audio.done"} <= set(kinds(events))
    assert "conversation.item.done" not in kinds(events)
    assert last(events)["modalities"] == ["text", "audio"]
    assert last(events)["output"][0]["content"][0]["type"] == "audio"
    events = driver.ask(modalities=["text"])
    assert {"response.text.delta", "response.text.done"} <= set(kinds(events))
    driver.say("get weather in Bern")
    assert last(driver.ask())["output"][0]["name"] == "get_weather"
    events = driver.append(tone(0.5) + silence(0.7)) + driver.run()
    assert "conversation.item.input_audio_transcription.completed" in kinds(events)
    bad = driver.send("session.update", session={"output_modalities": ["text"]})
    assert error_of(bad)["code"] == "unknown_parameter"
    item_id = next(e for e in events if e["type"] == "response.done")["response"]["output"][0]["id"]
    assert kinds(driver.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=100)) == [
        "conversation.item.truncated"
    ]


# --- xAI ---


def test_xai_tolerates_unknown_fields_and_takes_voice_at_the_top() -> None:
    """xAI drops what it does not know instead of refusing it."""
    driver = Driver(XAI)
    driver.new()
    session = {"type": "realtime", "voice": "eve", "turn_detection": None, "surprise": 1, "reasoning": {"effort": "high"}}
    (event,) = driver.send("session.update", session=session)
    assert (event["session"]["voice"], event["session"]["turn_detection"]) == ("eve", None)
    assert "surprise" not in event["session"]


def test_xai_usage_stands_beside_the_response_or_nowhere() -> None:
    """``usage`` of response.done is where the behaviour says."""
    driver = Driver(XAI, usage="beside")
    driver.say("hello")
    done = driver.ask()[-1]
    assert done["usage"]["total_tokens"] > 0
    assert "usage" not in done["response"]
    driver = Driver(XAI, usage="none")
    driver.say("hello")
    done = driver.ask()[-1]
    assert "usage" not in done
    assert "usage" not in done["response"]


def test_xai_transcription_is_cumulative() -> None:
    """Each ``…transcription.updated`` has the whole transcript so far."""
    driver = Driver(XAI, heard="one two three")
    session = {"turn_detection": None, "audio": {"input": {"transcription": {"model": "grok-transcribe"}}}}
    driver.send("session.update", session=session)
    driver.append(tone(0.5))
    driver.send("conversation.item.commit")
    events = driver.run()
    updates = [e["transcript"] for e in events if e["type"] == "conversation.item.input_audio_transcription.updated"]
    assert updates == ["one", "one two", "one two three"]


def test_xai_sound_travels_as_binary_when_agreed() -> None:
    """``transport: binary`` makes appends and deltas binary messages, at the agreed rate."""
    driver = Driver(XAI)
    wire = {"format": {"type": "audio/pcm", "rate": 16_000}, "transport": "binary"}
    driver.send("session.update", session={"audio": {"input": wire, "output": wire}})
    sixteen = AudioFormat("pcm", 16_000)
    assert driver.session.receive_binary(tone(0.5, sixteen) + silence(0.7, sixteen)) == "binary"
    driver.run()
    assert b"".join(driver.host.binary) == driver.session.bank.speech("I heard 1.0 seconds of speech.", sixteen).sound
    assert "response.output_audio.delta" not in kinds(driver.host.events)


def test_xai_says_a_forced_message_verbatim() -> None:
    """A ``force_message`` starts an answer with the client's words."""
    driver = Driver(XAI, name="unheard")
    item = {"type": "force_message", "role": "assistant", "content": [{"type": "output_text", "text": "Welcome!"}]}
    driver.send("conversation.item.create", item=item)
    assert last(driver.run())["output"][0]["content"][0]["transcript"] == "Welcome!"


def test_answers_are_the_same_every_time() -> None:
    """Two sessions that are told the same say the same, event for event."""
    runs = []
    for _ in range(2):
        driver = Driver()
        driver.say("a deterministic question")
        driver.ask()
        runs.append(driver.host.events)
    assert runs[0] == runs[1]


def test_a_turn_can_be_committed_while_it_is_spoken() -> None:
    """A client's commit ends the detected turn under the id that was announced; its silence then ends nothing."""
    driver = Driver()
    (started,) = driver.append(tone(0.5))
    events = driver.send("input_audio_buffer.commit")
    assert events[0]["item_id"] == started["item_id"]
    assert driver.append(silence(1)) == []


def test_an_announced_id_may_be_taken_by_the_client() -> None:
    """The turn then gets another id, and nothing is lost."""
    driver = Driver()
    (started,) = driver.append(tone(0.5))
    driver.say("mine", id=started["item_id"])
    events = driver.append(silence(0.7))
    committed = next(event for event in events if event["type"] == "input_audio_buffer.committed")
    assert committed["item_id"] != started["item_id"]
    assert len(driver.session.conversation) == 2


def test_turning_detection_off_ends_a_turn_under_way() -> None:
    """Without detection the sound waits for a commit, however long the silence."""
    driver = Driver()
    driver.append(tone(0.5))
    driver.send("session.update", session=NO_DETECTION)
    assert driver.append(silence(1)) == []
    assert kinds(driver.send("input_audio_buffer.commit"))[0] == "input_audio_buffer.committed"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"item_id": "u"}, "item_truncate_invalid_item_id", "item_id"),
        ({"item_id": "ours"}, "missing_required_parameter", "content_index"),
        ({"item_id": "ours", "content_index": 0}, "missing_required_parameter", "audio_end_ms"),
        ({"item_id": "ours", "content_index": 1, "audio_end_ms": 5}, "invalid_value", "content_index"),
        ({"item_id": "ours", "content_index": 0, "audio_end_ms": -1}, "invalid_value", "audio_end_ms"),
        ({"item_id": "ours", "content_index": 0, "audio_end_ms": 1.5}, "invalid_value", "audio_end_ms"),
    ],
)
def test_bad_truncations(fields: dict[str, Any], code: str, param: str) -> None:
    """Only the model's sound can be cut, at a whole millisecond within it."""
    driver = Driver()
    driver.say("hello", id="u")
    ours = last(driver.ask())["output"][0]["id"]
    if fields["item_id"] == "ours":
        fields = fields | {"item_id": ours}
    error = error_of(driver.send("conversation.item.truncate", **fields))
    assert (error["code"], error["param"]) == (code, param)


def test_bad_forced_messages() -> None:
    """A ``force_message`` needs words, and a moment when nothing else is said."""
    driver = Driver(XAI)
    assert (
        error_of(driver.send("conversation.item.create", item={"type": "force_message"}))["code"] == "missing_required_parameter"
    )
    item = {"type": "force_message", "text": "Hello."}
    assert kinds(driver.send("conversation.item.create", item=item)) == ["response.created"]
    error = error_of(driver.send("conversation.item.create", item=item))
    assert error["code"] == "conversation_already_has_active_response"


def test_previous_item_id_must_be_text() -> None:
    """Another type is refused and nothing is added."""
    driver = Driver()
    message = {"type": "message", "role": "user", "content": []}
    error = error_of(driver.send("conversation.item.create", previous_item_id=5, item=message))
    assert error["param"] == "previous_item_id"
    assert len(driver.session.conversation) == 0


def test_a_truncation_during_the_answer_does_not_stop_it() -> None:
    """An item may be cut while it is sent; its transcript stays unknown at the end."""
    driver = Driver(reply="a long answer that goes on and on")
    driver.say("hello")
    driver.send("response.create")
    added = next(event for event in driver.steps(4) if event["type"] == "response.output_item.added")
    cut = {"item_id": added["item"]["id"], "content_index": 0, "audio_end_ms": 100}
    assert kinds(driver.send("conversation.item.truncate", **cut)) == ["conversation.item.truncated"]
    assert last(driver.run())["output"][0]["content"][0]["transcript"] is None
