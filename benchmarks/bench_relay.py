"""The relay beside HAProxy, nginx, Envoy and a plain aiohttp relay: CPU a message and a session, added latency, memory.

    make bench ARGS="relay --rounds 5 --json relay.json"

``--help`` lists the options; ``benchmarks/README.md`` tells what is measured and how to read it. Exits with 1 when anything that
was sent did not arrive as it was sent.
"""

from __future__ import annotations

import sys

from benchmarks.relay.run import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
