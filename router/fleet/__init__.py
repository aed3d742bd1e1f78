"""What the processes of a fleet tell each other, so that they balance as one (DESIGN §8).

State, not deltas: each process keeps its own truth and publishes all of it at every beat; what others hold is the sum of
what they last published. A lost write heals at the next beat, a process that died vanishes with its entry, nothing can
drift.

    picture     what is published and heard: shares, their sum, how old it is            (pure)
    board       who holds what, as the Lua scripts keep it in Redis, in memory           (pure)
    exchange    the contract of the two below
    redis_link  the exchange through a Redis or Valkey server; redis_client its connections, scripts its Lua
    beat        the loop: publish, hear, say in which mode the process is
    gate        hard limits across the fleet: a place is asked for before a dial

``router.workers`` has the other exchange: the processes of one host through their parent. Replicas need a server, workers do
not.

A package rather than the design's one ``fleet.py``, because these change for separate reasons, and two of them need no event
loop.
"""
