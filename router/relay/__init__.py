"""The hot path: bytes move from one leg to the other verbatim, and a scanner follows the frames in them.

    contract.py   what the relay's users see: taps, the end of a session
    frames.py     RFC 6455 as a pure state machine: boundaries, legality, event types, what may be held back
    fastpath.py   what passes without a closer look: hot frames and the middles of frames, in one call from read to write
    leg.py        one transport under the project's own asyncio.Protocol
    farewell.py   last words to a client that gets no session
    takeover.py   how a transport leaves aiohttp after its handshake
    relay.py      two legs joined: forwarding, close handshakes, back-pressure, limits
    rewrite.py    messages that leave changed (``session.update`` names the group; the upstream wants its own model)
    turns.py      one budget for all legs of an event loop, so that floods share what one would cost
    sweep.py      one clock for all sessions: pings, dead peers, stalls, time limits

Seen from outside there is one narrow interface: ``Relay(client, upstream, …)``, ``await relay.run()`` → ``SessionEnd``, and
``relay.end(…)``. The study behind the design is summarised in ``relay.py``.
"""
