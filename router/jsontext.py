"""JSON text from outside, read as leniently as its other readers do.

orjson refuses lone surrogates, NaN and the like, which Python's own parser and most clients take. What one reader of an event
accepts and another does not is a hole: a bill that is not booked, a good event taken for garbage.
"""

from __future__ import annotations

import json
from typing import Any

import orjson


def parse(text: bytes) -> Any:
    """Return what the text means; ``None`` when it is not JSON, or nested too deeply to be read."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def parse_object(text: bytes) -> dict[str, Any]:
    """Return a JSON object; an empty one when the text is anything else."""
    value = parse(text)
    return value if isinstance(value, dict) else {}
