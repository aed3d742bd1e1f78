"""The library face against the simulator: the same engine as the server's, with a client that lives in memory."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import orjson
import pytest
import uvloop

from router import RealtimeSession, Router, SessionClosed, realtime
from router.errors import ConfigError, NoDeploymentAvailable, RateLimited, ShuttingDown, UnknownModel
from router.events import Notice, SessionRecord
from router.simulator import Simulator
from router.simulator.audio import PCM_24K, AudioBank
from router.simulator.pytest_plugin import SimulatorFactory
from tests.helpers.ports import free_port

KEY = "sk-library-0123456789abcdef"
REPLY = "Nine words make about four seconds of sound."
SPOKEN = AudioBank().speech(REPLY, PCM_24K).sound
MIB = 1024 * 1024
DEADLINE_S = 20.0
POLL_S = 0.01


@pytest.fixture(autouse=True)
def no_proxy_or_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own keys and proxies have no say in these tests."""
    for name in ("OPENAI_API_KEY", "XAI_API_KEY", "AZURE_API_KEY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def user_says(text: str) -> str:
    """A ``conversation.item.create`` with a user's text."""
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    return json.dumps({"type": "conversation.item.create", "item": item})


async def spoken_turn(session: RealtimeSession) -> tuple[dict[str, Any], bytes]:
    """Hold one turn; return its ``response.done`` and the sound."""
    await session.send_text(user_says("Say something."))
    await session.send_text('{"type": "response.create"}')
    sound = bytearray()
    async with asyncio.timeout(DEADLINE_S):
        async for message in session:
            event = json.loads(message)
            assert event["type"] != "error", event
            if event["type"] in ("response.output_audio.delta", "response.audio.delta"):
                sound += base64.b64decode(event["delta"])
            if event["type"] == "response.done":
                return event, bytes(sound)
    raise AssertionError("the session ended before response.done")


def config(folder: Path, deployments: list[dict[str, Any]], **sections: Any) -> Path:
    """Write a configuration whose entries are the ``litellm_params`` given; each model is in the group ``voice``."""
    entries = [{"model_name": "voice", "litellm_params": params, "model_info": {"mode": "realtime"}} for params in deployments]
    path = folder / "config.yaml"
    # JSON is YAML.
    path.write_text(json.dumps({"model_list": entries, **sections}))
    return path


def open_files() -> set[str]:
    """What the process holds open beside plain files: sockets, pipes."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return {target for target in found if target.startswith("socket:")}


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Poll a condition until it holds; fail with ``what`` when it does not within the deadline."""
    for _ in range(int(DEADLINE_S / POLL_S)):
        if condition():
            return
        await asyncio.sleep(POLL_S)
    pytest.fail(f"did not become true: {what}")


# --- realtime() ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "dialect"), [("openai/gpt-realtime", "openai"), ("xai/grok-voice-latest", "xai")])
async def test_a_turn_with_audio(simulator: SimulatorFactory, model: str, dialect: str) -> None:
    """A program gets every byte of an answer's sound, from both families of providers."""
    sim = await simulator(dialect=dialect, api_keys=[KEY], reply=REPLY)
    async with await realtime(model=model, api_key=KEY, api_base=sim.api_base) as session:
        done, sound = await spoken_turn(session)
    assert done["response"]["status"] == "completed"
    assert sound == SPOKEN
    request = sim.stats.last_request
    assert request is not None
    assert request.query["model"] == model.partition("/")[2]


async def test_the_key_comes_from_the_usual_variable(simulator: SimulatorFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``api_key`` the provider's usual environment variable is used."""
    sim = await simulator(dialect="xai", api_keys=[KEY])
    monkeypatch.setenv("XAI_API_KEY", KEY)
    session = await realtime(model="xai/grok-4-1-fast-non-reasoning", api_base=sim.api_base)
    await session.close()
    request = sim.stats.last_request
    assert request is not None
    assert request.headers["Authorization"] == f"Bearer {KEY}"


async def test_close_tells_the_provider_and_ends_the_iteration(simulator: SimulatorFactory) -> None:
    """``close`` says CLOSE upstream with the given code; whoever iterates then simply gets to the end."""
    sim = await simulator()
    session = await realtime(model="openai/gpt-realtime", api_key=KEY, api_base=sim.api_base)
    seen: list[str] = []

    async def read() -> None:
        async for message in session:
            seen.append(json.loads(message)["type"])

    reader = asyncio.create_task(read())
    await eventually(lambda: bool(seen), "the first event arrives")
    assert session.close_code is None
    await session.close(4001, "enough")
    await asyncio.wait_for(reader, DEADLINE_S)
    await sim.stats.wait_until(lambda stats: stats.active == 0)
    assert sim.stats.close_codes == {4001: 1}
    assert session.close_code == 4001
    await session.close()  # closing twice is closing once
    with pytest.raises(SessionClosed):
        await session.send_text("{}")
    assert sim.stats.close_codes == {4001: 1}


async def test_the_providers_close_is_told(simulator: SimulatorFactory) -> None:
    """``receive`` raises with the provider's close code and reason once everything before it was taken."""
    sim = await simulator()
    session = await realtime(model="openai/gpt-realtime", api_key=KEY, api_base=sim.api_base)
    first = await session.receive()
    assert orjson.loads(first)["type"] == "session.created"
    sim.close_sessions(1001, "Your session hit the maximum duration of 60 minutes.")
    with pytest.raises(SessionClosed) as told:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                await session.receive()
    assert (told.value.code, told.value.reason) == (1001, "Your session hit the maximum duration of 60 minutes.")
    with pytest.raises(SessionClosed):
        await session.send_text("{}")
    await session.close()


async def test_a_lost_provider_is_told(simulator: SimulatorFactory) -> None:
    """A connection that breaks without a CLOSE ends the iteration with the code that a server's client would get."""
    sim = await simulator()
    session = await realtime(model="openai/gpt-realtime", api_key=KEY, api_base=sim.api_base)
    await session.receive()
    sim.reset_sessions()
    async with asyncio.timeout(DEADLINE_S):
        assert [message async for message in session] == []
    assert session.close_code == 1011
    await session.close()


@pytest.mark.parametrize(
    ("model", "params", "told"),
    [
        ("grok-voice-latest", {"api_key": KEY}, "model"),
        ("nobody/gpt-realtime", {"api_key": KEY}, "nobody"),
        ("openai/", {"api_key": KEY}, "model"),
        ("", {"api_key": KEY}, "model"),
        ("openai/gpt-realtime", {}, "OPENAI_API_KEY"),
        ("openai/gpt-realtime", {"api_key": KEY, "api_base": "ftp://example.com"}, "api_base"),
        ("openai/gpt-realtime", {"api_key": KEY, "connect_timeout_s": -1}, "connect_timeout_s"),
        ("openai/gpt-realtime", {"api_key": KEY, "conect_timeout_s": 1}, "connect_timeout_s"),
    ],
)
async def test_wrong_parameters_are_told_at_once(model: str, params: dict[str, Any], told: str) -> None:
    """A call that cannot work raises ``ConfigError`` before anything is dialled; it names the parameter and no key."""
    with pytest.raises(ConfigError) as error:
        await realtime(model=model, **params)
    assert told in str(error.value)
    assert KEY not in str(error.value)


async def test_a_refused_key(simulator: SimulatorFactory) -> None:
    """A provider that does not accept the key is not dialled again and again: the error comes at once, without the key."""
    sim = await simulator(api_keys=["another"])
    with pytest.raises(NoDeploymentAvailable) as error:
        await realtime(model="openai/gpt-realtime", api_key=KEY, api_base=sim.api_base)
    assert sim.stats.sessions_refused == 1
    assert KEY not in str(error.value)


# --- Router.from_config --------------------------------------------------------------------------


async def test_fallback_between_two_deployments(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """``Router.from_config`` gives the same fallback as the server: a refusing deployment is never noticed."""
    failing = await simulator(faults=["status=503"])
    working = await simulator(dialect="xai", reply=REPLY)
    path = config(
        tmp_path,
        [
            {"model": "openai/gpt-realtime", "api_key": KEY, "api_base": failing.api_base},
            {"model": "xai/grok-voice-latest", "api_key": KEY, "api_base": working.api_base, "order": 1},
        ],
    )
    async with Router.from_config(path) as router:
        async with await router.realtime("voice") as session:
            _, sound = await spoken_turn(session)
        assert "xai" in session.deployment
    assert sound == SPOKEN
    assert failing.stats.upgrades_refused == 1
    assert working.stats.sessions_opened == 1


async def test_errors_of_a_router(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """An unknown group, nothing reachable and a full deployment are three different exceptions."""
    sim = await simulator()
    single = {"api_key": KEY, "api_base": sim.api_base, "max_sessions": 1}
    dead = {"model": "openai/dead", "api_key": KEY, "api_base": f"http://127.0.0.1:{free_port()}/v1"}
    document = json.loads(config(tmp_path, [{"model": "openai/one", **single}]).read_text())
    document["model_list"].append({"model_name": "dead", "litellm_params": dead, "model_info": {"mode": "realtime"}})
    document["router_settings"] = {"num_retries": 0}
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(document))
    async with Router.from_config(path) as router:
        with pytest.raises(UnknownModel):
            await router.realtime("nobody")
        with pytest.raises(NoDeploymentAvailable) as unreachable:
            await router.realtime("dead")
        assert "127.0.0.1" not in unreachable.value.public_message
        # The traceback tells why, deployment by deployment; the message that a client may see does not.
        (note,) = unreachable.value.__notes__
        assert note.startswith("dead-openai-dead-") and ": unreachable after " in note and "Connect call failed" in note
        async with await router.realtime("voice"):
            with pytest.raises(RateLimited) as full:
                await router.realtime("voice")
            assert full.value.retry_after_s is not None
            (note,) = full.value.__notes__
            assert note.startswith("voice-openai-one-") and note.endswith(": not dialled: full")
        # The place is free again as soon as the session is closed.
        async with await router.realtime("voice"):
            pass


async def test_a_closed_router_closes_its_sessions(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """Leaving the router's ``async with`` ends what still runs, and opens nothing new."""
    sim = await simulator()
    path = config(tmp_path, [{"model": "openai/gpt-realtime", "api_key": KEY, "api_base": sim.api_base}])
    async with Router.from_config(path) as router:
        sessions = [await router.realtime("voice") for _ in range(3)]
    for session in sessions:
        async with asyncio.timeout(DEADLINE_S):
            types = [json.loads(message)["type"] async for message in session]
        assert types[0] == "session.created"
        assert session.close_code == 1001
    await sim.stats.wait_until(lambda stats: stats.active == 0)
    with pytest.raises(ShuttingDown):
        await router.realtime("voice")


async def test_closing_a_router_that_is_opening(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """A ``realtime`` that still waits when the router is closed raises ``ShuttingDown`` at once.

    It used to raise ``CancelledError`` into a task that nobody had cancelled.
    """
    sim = await simulator(faults=["hang_before_101"])
    path = config(tmp_path, [{"model": "openai/gpt-realtime", "api_key": KEY, "api_base": sim.api_base}])
    async with Router.from_config(path) as router:
        opening = asyncio.create_task(router.realtime("voice"))
        await sim.stats.wait_until(lambda stats: len(stats.requests) == 1)
    done, _ = await asyncio.wait([opening], timeout=DEADLINE_S)
    assert done and not opening.cancelled()
    assert isinstance(opening.exception(), ShuttingDown)


async def test_what_observers_are_told(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """A program's observers get the same records as the server's, and the warnings of the file."""
    sim = await simulator()
    path = config(
        tmp_path,
        [{"model": "openai/gpt-realtime", "api_key": KEY, "api_base": sim.api_base}],
        litellm_settings={"drop_params": True},
    )
    told: list[object] = []
    async with Router.from_config(path, observers=(told.append,)) as router, await router.realtime("voice") as session:
        await spoken_turn(session)
    (notice,) = (event for event in told if isinstance(event, Notice))
    assert notice.level == "warning"
    assert "drop_params" in notice.facts["warning"]
    (record,) = (event for event in told if isinstance(event, SessionRecord))
    assert (record.session, record.turns, record.client) == (session.id, 1, "local")
    assert record.usage.total > 0


async def test_active_probes_run_in_a_program_too(simulator: SimulatorFactory, tmp_path: Path) -> None:
    """``health_check`` of the file has its effect without a server: the first session starts what runs in the background."""
    sim = await simulator()
    probed = await simulator(dialect="xai")
    path = config(
        tmp_path,
        [
            {"model": "openai/gpt-realtime", "api_key": KEY, "api_base": sim.api_base},
            {
                "model": "xai/grok-voice-latest",
                "api_key": KEY,
                "api_base": probed.api_base,
                "order": 1,
                "health_check": {"interval_s": 1, "timeout_s": 1},
            },
        ],
    )
    async with Router.from_config(path) as router, await router.realtime("voice"):
        await probed.stats.wait_until(lambda stats: stats.sessions_opened >= 1, timeout_s=DEADLINE_S)


async def test_a_bad_file(tmp_path: Path) -> None:
    """A file with two faults is refused with both, each at its line."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "model_list:\n"
        "  - model_name: voice\n"
        "    litellm_params:\n"
        "      model: openai/gpt-realtime\n"
        f"      api_key: {KEY}\n"
        "      weight: -1\n"
        "      wait: 2\n"
    )
    with pytest.raises(ConfigError) as error:
        Router.from_config(path)
    assert [problem.line for problem in error.value.problems] == [6, 7]
    assert KEY not in str(error.value)


# --- limits of a session -------------------------------------------------------------------------


async def echo_session(sim: Simulator) -> RealtimeSession:
    """A session whose provider returns every message."""
    return await realtime(model="openai_compatible/echo", api_base=sim.api_base, ready="handshake")


async def test_a_message_of_20_mib_both_ways(simulator: SimulatorFactory) -> None:
    """A message as large as a provider accepts travels whole in both directions, as text and as binary."""
    sim = await simulator(dialect="echo")
    async with await echo_session(sim) as session:
        audio = base64.b64encode(os.urandom(15 * MIB)).decode()
        text = f'{{"type":"input_audio_buffer.append","audio":"{audio}"}}'
        assert len(text) > 20 * MIB
        async with asyncio.timeout(DEADLINE_S):
            await session.send_text(text)
            assert await session.receive() == text
            data = os.urandom(20 * MIB)
            await session.send_bytes(data)
            assert await session.receive() == data


async def test_a_program_that_does_not_read_is_waited_for(simulator: SimulatorFactory) -> None:
    """Unread messages hold the provider back, and through it the sender; memory stays bounded and nothing is lost."""
    sim = await simulator(dialect="echo")
    messages = 512  # 64 MiB, more than every buffer on the way together
    payload = os.urandom(128 * 1024)
    async with await echo_session(sim) as session:
        transport = session._transport
        sent = 0

        async def send() -> None:
            nonlocal sent
            for number in range(messages):
                await session.send_bytes(number.to_bytes(4, "big") + payload)
                sent += 1

        sender = asyncio.create_task(send())
        largest = 0

        def held() -> bool:
            nonlocal largest
            largest = max(largest, transport.get_write_buffer_size())
            return transport._reading_paused

        await eventually(held, "the sender is held back")
        assert not sender.done()
        assert 0 < sent < messages
        async with asyncio.timeout(DEADLINE_S):
            for number in range(messages):
                message = await session.receive()
                held()
                assert isinstance(message, bytes)
                assert int.from_bytes(message[:4], "big") == number
                assert message[4:] == payload
            await sender
        # One read of the socket may come on top of the bound.
        assert largest < 4 * MIB


async def test_binary_messages_are_left_out_of_the_iteration(simulator: SimulatorFactory) -> None:
    """``async for`` promises text; ``receive`` gives both kinds."""
    sim = await simulator(dialect="echo")
    async with await echo_session(sim) as session:
        await session.send_bytes(b"\x00\x01")
        await session.send_text("ä text")
        async with asyncio.timeout(DEADLINE_S):
            async for message in session:
                assert message == "ä text"
                break
        await session.send_bytes(b"\x02")
        assert await session.receive() == b"\x02"


# --- cancellation and leftovers ------------------------------------------------------------------


@pytest.fixture
async def no_leftovers() -> AsyncIterator[None]:
    """Nothing of the test's sessions is left when it ends: no task, no socket."""
    tasks, files = asyncio.all_tasks(), open_files()
    yield

    def left() -> list[str]:
        # The fixture itself goes on in another task than it began in.
        running = asyncio.all_tasks() - tasks - {asyncio.current_task()}
        return [task.get_name() for task in running] + sorted(open_files() - files)

    for _ in range(int(DEADLINE_S / POLL_S)):
        if not left():
            return
        await asyncio.sleep(POLL_S)
    pytest.fail(f"left behind: {left()}")


@pytest.mark.parametrize("fault", ["hang_before_101", "hang_after_101", "slow_first_event=60"])
@pytest.mark.usefixtures("no_leftovers")
async def test_cancelled_while_opening(fault: str) -> None:
    """Giving up an open that hangs, in whatever phase, closes its connection at once and leaves nothing behind."""
    async with Simulator(faults=[fault]) as sim:
        opening = asyncio.create_task(realtime(model="openai/gpt-realtime", api_key=KEY, api_base=sim.api_base))
        await sim.stats.wait_until(lambda stats: len(stats.requests) == 1)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(opening, DEADLINE_S)
        await sim.stats.wait_until(lambda stats: stats.active == 0)


@pytest.mark.usefixtures("no_leftovers")
async def test_cancelled_at_every_moment_of_opening() -> None:
    """Wherever a cancellation strikes an open that would succeed, no session, task or socket is left.

    The task is cancelled after each number of turns of the event loop, so that every await is struck at least once.
    """
    async with Simulator() as sim:
        opened = 0
        for turns in range(2_000):
            opening = asyncio.create_task(realtime(model="openai/gpt-realtime", api_key=KEY, api_base=sim.api_base))
            for _ in range(turns):
                await asyncio.sleep(0)
                if opening.done():
                    break
            opening.cancel()
            try:
                session = await asyncio.wait_for(opening, DEADLINE_S)
            except asyncio.CancelledError:
                continue
            opened += 1
            await session.close()
            if opened == 3:
                break
        assert opened == 3, "the cancellations never reached the end of the opening"
        await sim.stats.wait_until(lambda stats: stats.active == 0)


@pytest.mark.usefixtures("no_leftovers")
async def test_cancelled_while_receiving() -> None:
    """Giving up a ``receive`` takes no message: the next one gets what came."""
    async with Simulator() as sim, await realtime(model="openai/x", api_key=KEY, api_base=sim.api_base) as session:
        await session.receive()
        for _ in range(3):
            waiting = asyncio.create_task(session.receive())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        done, _ = await spoken_turn(session)
        assert done["type"] == "response.done"


@pytest.mark.usefixtures("no_leftovers")
async def test_an_end_that_nobody_closes() -> None:
    """A session that the provider ended, and that the program then closes, leaves nothing behind."""
    async with Simulator() as sim:
        session = await realtime(model="openai/gpt-realtime", api_key=KEY, api_base=sim.api_base)
        await session.receive()
        sim.close_sessions(1000)
        async with asyncio.timeout(DEADLINE_S):
            assert [message async for message in session] == []
        await session.close()


@pytest.mark.usefixtures("no_leftovers")
async def test_a_close_that_is_cancelled_can_be_repeated() -> None:
    """A ``close`` that is given up does not lose what it would have closed: the second one does it."""
    async with Simulator(faults=["stall"]) as sim:
        session = await realtime(model="openai/gpt-realtime", api_key=KEY, api_base=sim.api_base)
        closing = asyncio.create_task(session.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await asyncio.wait_for(session.close(), DEADLINE_S)


@pytest.mark.usefixtures("no_leftovers")
async def test_many_sessions_at_once(tmp_path: Path) -> None:
    """A hundred sessions over two deployments hold a turn each at the same time, and leave no task or socket behind."""
    count = 100
    async with Simulator(reply=REPLY) as one, Simulator(dialect="xai", reply=REPLY) as two:
        path = config(
            tmp_path,
            [
                {"model": "openai/gpt-realtime", "api_key": KEY, "api_base": one.api_base},
                {"model": "xai/grok-voice-latest", "api_key": KEY, "api_base": two.api_base},
            ],
        )

        async def converse(router: Router) -> bytes:
            async with await router.realtime("voice") as session:
                _, sound = await spoken_turn(session)
            return sound

        async with Router.from_config(path) as router:
            sounds = await asyncio.gather(*(converse(router) for _ in range(count)))
        assert sounds == [SPOKEN] * count
        assert one.stats.sessions_opened + two.stats.sessions_opened == count
        # Least connections: neither of two equal deployments is left aside.
        assert min(one.stats.sessions_opened, two.stats.sessions_opened) >= count // 4
        for sim in (one, two):
            await sim.stats.wait_until(lambda stats: stats.active == 0)


def test_on_either_event_loop() -> None:
    """asyncio's own loop and uvloop serve a program alike: its choice is not the library's."""

    async def program() -> bytes:
        async with (
            Simulator(reply=REPLY) as sim,
            await realtime(model="openai/gpt-realtime", api_key=KEY, api_base=sim.api_base) as session,
        ):
            return (await spoken_turn(session))[1]

    def run(main: Callable[[], Coroutine[Any, Any, bytes]], factory: Callable[[], asyncio.AbstractEventLoop]) -> bytes:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main())

    assert run(program, asyncio.new_event_loop) == SPOKEN
    assert run(program, uvloop.new_event_loop) == SPOKEN
