"""The relay beside other proxies: CPU, latency, session set-up and memory, on one machine in one run.

    wire.py          frames, cheap to send and to check; ``Verdict``: the first fault ends the run
    events.py        what both ends say: every event has its number and a content that the other end knows
    upstream.py      the provider; load.py the clients; pacer.py sends at real-time pace
    peers.py         the proxies: the router, HAProxy, nginx, Envoy, a plain aiohttp relay (aiohttp_relay.py)
    cpu.py           what a process has cost, read from the operating system
    windows.py       one measurement of one proxy; run.py the rounds; report.py the table and the JSON
    certificates.py  an authority for the run, for a provider behind TLS

Clients and provider share one process and one event loop on one core, the proxies share another core and only one of them has
work at a time. Linux only: it reads ``/proc``.
"""
