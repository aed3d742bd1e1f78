"""The Autobahn suite as a process: ``python -m tests.conformance.suite HOST:PORT CONCURRENCY [PATTERN ...]``, which prints JSON.

Not in the tests' own process: it puts stand-ins for modules that are long gone (``pkg_resources``) on the path, and whoever asks
for those later gets them, pytest among them.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from kosoku import FailureError, run_fuzzingclient


def told(result: Any) -> dict[str, Any]:
    """What kosoku tells of a case, as ``Outcome`` has it."""
    code, reason = result.remote_close_code, result.remote_close_reason
    return {
        "case": result.case_id,
        "behavior": result.behavior.value,
        "close": result.behavior_close.value,
        "passed": result.passed,
        "details": [
            "case: " + " ".join(result.description.split()),
            "expectation: " + " ".join(result.expectation.split()),
            f"messages: {result.behavior.value}: {result.result}",
            f"close: {result.behavior_close.value}: {result.result_close}",
            f"expected close: {result.expected_close}, received {code} {reason!r}, sent {result.local_close_code}",
            f"expected one of: {str(result.expected)[:400]}",
            f"received: {str(result.received)[:400]}",
            f"clean: {result.was_clean}, otherwise: {result.was_not_clean_reason}",
        ],
    }


async def main(address: str, concurrency: str, *patterns: str) -> None:
    """Run the cases that fit, all of them without a pattern."""
    try:
        results = await run_fuzzingclient(address, list(patterns) or None, concurrency=int(concurrency))
    except FailureError as failure:
        # Of all cases, not only of those that failed.
        results = failure.results
    json.dump([told(result) for result in results], sys.stdout)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
    sys.stdout.flush()
    # Its threads may still run, and an interpreter that takes itself apart meanwhile is aborted now and then.
    os._exit(0)
