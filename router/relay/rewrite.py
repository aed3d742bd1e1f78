"""Messages that leave changed. Only one does by default: ``session.update`` carries the group's public name as the model.

Almost every SDK repeats the model in ``session.update.session.model`` (PROTOCOL §1.5), where the upstream expects its own name
for it or nothing. vLLM reads it at the top level. The transcription model inside ``session.audio`` is another thing and stays.
"""

from __future__ import annotations

import json
from typing import Final

SESSION_UPDATE: Final = "session.update"


def rewrite_session_update(text: bytes, model: str) -> bytes | None:
    """Put the deployment's model into a ``session.update``.

    Args:
        text: JSON text of a message that may or may not be a ``session.update``.
        model: what the upstream calls the model.

    Returns: new JSON text, or ``None`` when the message is to go out unchanged, byte for byte: it is no ``session.update``, names
        no model, names the right one already, or is not JSON (the upstream's business).
    """
    if b'"model"' not in text:
        return None
    try:
        event = json.loads(text)
        if not isinstance(event, dict) or event.get("type") != SESSION_UPDATE:
            return None
        changed = False
        for place in (event, event.get("session")):
            if isinstance(place, dict) and isinstance(place.get("model"), str) and place["model"] != model:
                place["model"] = model
                changed = True
        # ASCII output keeps lone surrogates writable; a number beyond a double became inf and is refused here.
        return json.dumps(event, separators=(",", ":"), allow_nan=False).encode() if changed else None
    except (ValueError, RecursionError):
        return None
