"""A real parent with workers that act: ``python -m tests.unit.workers.acting SCENARIO``.

The parent forks, so it needs a process without an event loop and threads of its own. Scenarios are what its workers do; a worker
knows the incarnation that it is by the file in ``ACTING_FOLDER`` that it adds a byte to.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from router import logs
from router.config.settings import DrainSettings, ListenSettings, ServerSettings, Settings
from router.events import Observers
from router.workers.channel import encode
from router.workers.parent import Parent
from router.workers.worker import Place

# Nothing here lives longer, whatever goes wrong.
LIFE_S = 30.0
# What the parent keeps for a worker that does not read.
UNREAD_BYTES = 16 * 1024 * 1024


def incarnation(place: Place) -> int:
    """The how-many-th worker of its slot this is, from 1."""
    with (Path(os.environ["ACTING_FOLDER"]) / str(place.number)).open("ab") as file:
        file.write(b".")
        return file.tell()


def serve(place: Place, *, until_s: float = LIFE_S, pulse: bool = True) -> int:
    """Say that it serves, and pulses, until SIGTERM, the parent's end, or a time; returns 0."""
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    place.channel.sendall(encode({"k": "ready"}))
    deadline = time.monotonic() + until_s
    while not ended and time.monotonic() < deadline:
        if pulse:
            place.channel.sendall(encode({"k": "pulse", "sessions": 7}))
        readable, _, _ = select.select([place.channel], [], [], 0.05)
        if readable and not place.channel.recv(65536):
            break
    return 0


def raises(settings: Settings, place: Place) -> int:
    """The second worker fails before it serves."""
    if place.number == 1:
        raise RuntimeError("cannot begin")
    return serve(place)


def returns(settings: Settings, place: Place) -> int:
    """The second worker ends with a code of its own before it serves."""
    return 3 if place.number == 1 else serve(place)


def killed(settings: Settings, place: Place) -> int:
    """The second worker is killed before it serves."""
    if place.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return serve(place)


def dies_young(settings: Settings, place: Place) -> int:
    """The second worker dies soon after it serves, four times; then it stays."""
    if place.number == 1 and incarnation(place) <= 4:
        place.channel.sendall(encode({"k": "ready"}) + encode({"k": "samples", "data": []}))
        return 9
    return serve(place)


def silent(settings: Settings, place: Place) -> int:
    """The second worker serves and then says nothing; its replacement is well."""
    return serve(place, pulse=place.number != 1 or incarnation(place) > 1)


def senseless(settings: Settings, place: Place) -> int:
    """The second worker says what is no message; its replacement is well."""
    if place.number == 1 and incarnation(place) == 1:
        asked = {"k": "ask", "id": 1, "what": "beat", "share": "{}", "renew": {}}
        place.channel.sendall(encode({"k": "ready"}) + encode(asked))
        # The answer tells that it counts as serving: what fails before that ends the start.
        place.channel.recv(65536)
        place.channel.sendall(b"\xff\xff\xff\xff")
    return serve(place)


def odd(settings: Settings, place: Place) -> int:
    """The second worker says messages that mean nothing, and lives."""
    for message in (
        {},
        {"k": "no such kind"},
        {"k": ["ask"]},
        {"k": "pulse", "sessions": -1},
        {"k": "samples", "data": {}},
        {"k": "told", "id": 1, "data": []},
        {"k": "ask", "id": "x", "what": "beat"},
        {"k": "ask", "id": 1, "what": "fly"},
        {"k": "ask", "id": 2, "what": ["beat"]},
        {"k": "ask", "id": 3, "what": "beat", "share": {}, "renew": {}},
        {"k": "ask", "id": 4, "what": "beat", "share": "[]", "renew": {}},
        {"k": "ask", "id": 5, "what": "beat", "share": "{}", "renew": {"d": ["somebody's:1"]}},
        {"k": "ask", "id": 6, "what": "acquire", "wanted": [["d", True, "x"]]},
        {"k": "ask", "id": 7, "what": "release", "places": []},
        {"k": "ask", "id": 8, "what": "metrics", "accept": 1},
        {"k": "ask", "id": 10, "what": "sessions"},
        {"k": "ask", "id": 11, "what": "set", "args": {"id": 1}},
        {"k": "ask", "id": 9, "what": "acquire", "wanted": [["d" * 1000, 1, f"{place.member}:1"]]},
    ):
        if place.number == 1:
            place.channel.sendall(encode(message))
    return serve(place)


def deaf(settings: Settings, place: Place) -> int:
    """The second worker asks and asks, and reads nothing; its replacement is well."""
    if place.number == 1 and incarnation(place) == 1:
        place.channel.sendall(encode({"k": "ready"}))
        asked = encode({"k": "ask", "id": 2**60, "what": "beat", "share": "{}", "renew": {}})
        while True:
            place.channel.sendall(asked * 100)
    return serve(place)


def stubborn(settings: Settings, place: Place) -> int:
    """The second worker does not end when it is asked to."""
    if place.number == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        place.channel.sendall(encode({"k": "ready"}))
        time.sleep(LIFE_S)
    return serve(place)


SCENARIOS: dict[str, Callable[[Settings, Place], int]] = {
    scene.__name__: scene for scene in (raises, returns, killed, dies_young, silent, senseless, odd, deaf, stubborn)
}


def main(name: str) -> int:
    """Run a parent over workers of a scenario."""
    drain = DrainSettings(grace_s=0, timeout_s=0)
    server = ServerSettings(listen=ListenSettings(host="127.0.0.1", port=0), workers=2, drain=drain)
    logs.configure("json", "info")
    signal.alarm(int(LIFE_S))
    tell = Observers([logs.LogObserver()])
    parent = Parent(
        Settings(server=server, groups={}),
        tell,
        work=SCENARIOS[name],
        silent_ticks=2,
        kill_after_s=1.0,
        most_unread_bytes=UNREAD_BYTES,
    )
    return parent.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
