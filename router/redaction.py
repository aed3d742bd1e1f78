"""The last line of defence against a secret in a log: takes secrets out of text, whoever put them there.

Nothing should get this far, for no message of the project holds a key. But exceptions of libraries quote URLs and headers, an
upstream may answer with the key it was sent, and a client may put one where nobody expects it. Two nets:

- every secret that was registered, also in the spellings that a URL, a JSON text or a ``repr`` gives it;
- what looks like a key: the prefixes of OpenAI, xAI and the router itself, ``Bearer …``, ``api_key=…``, a password in a URL, a
  JWT.

It errs on the side of hiding. Texts come from outside, so no pattern takes more than linear time: none begins with a repetition
that it could try again at every character. Pure: no logging, no I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final
from urllib.parse import quote, quote_plus, unquote, urlsplit

from router.config.settings import Secret, Settings

MASK: Final = "***"

# Shorter ones cannot be told from ordinary text: ``1`` as a secret would take every 1 out of every line.
MIN_SECRET_CHARS: Final = 4
# Shorter ones are words such as ``none`` or ``openai``, which local servers take as a key: hidden only where they stand alone, or
# the names of deployments would be hidden with them.
_WORD_CHARS: Final = 8

_MAX_WORDS: Final = 512

# Looked for before any of the patterns is tried; a line that has none of these, nearly every one, costs one search.
_HINT: Final = re.compile(r"sk-|rr-|xai-|ek_|eyJ|bearer|basic|key|token|secret|passw|authorization|cookie|://", re.IGNORECASE)

# Names whose value is a secret; a quote (escaped, within a JSON text in a JSON text) may follow.
_NAMED: Final = r"((?:api[-_]?key|authorization|passw(?:or)?d|client[-_]?secret|token|cookie)(?:\\?[\"'])?\s*"
_VALUE: Final = r"[^\s\"'\\&,;]"

# What stays → group 1; what goes is replaced. In order: what an earlier one hides, a later one does not see.
_PATTERNS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    # user:password@ of a URL.
    (re.compile(r"(://)[^\s/@\"'<>]+@"), rf"\1{MASK}@"),
    # The subprotocols that browsers send a key in.
    (re.compile(rf"((?:openai-insecure-api-key|xai-client-secret)\.){_VALUE}+", re.IGNORECASE), rf"\1{MASK}"),
    # name=value, as in a query.
    (re.compile(rf"{_NAMED}=\s*(?:\\?[\"'])?)(?:(?:bearer|basic)\s+)?{_VALUE}+", re.IGNORECASE), rf"\1{MASK}"),
    # "name": "value", and a header's name: value. Prose has colons too ("api_key: found nothing"), so what is not in quotes has
    # to be as long as a key is, or announced.
    (re.compile(rf"{_NAMED}:\s*\\?[\"'])[^\"'\\]+", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(rf"{_NAMED}:\s*)(?:(?:bearer|basic)\s+{_VALUE}+|{_VALUE}{{12,}})", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(rf"\b(bearer\s+)(?!\*){_VALUE}+", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"\b(basic\s+)[A-Za-z0-9+/]{8,}={0,2}", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_.-]+"), MASK),
    # Keys by their prefix; never within a word ("risk-averse", "agent-xai-…"). Names of models begin with ``xai-grok``.
    (re.compile(r"(?<![A-Za-z0-9_-])(?:sk-|rr-|ek_|xai-(?!grok|client-secret))[A-Za-z0-9_-]{6,}"), MASK),
)


class Redactor:
    """Replaces secrets in text by ``***``. Call it with the text."""

    def __init__(self) -> None:
        self._spellings: set[str] = set()
        # Only set once a secret is registered.
        self._registered: re.Pattern[str] | None = None
        # Short texts that come again and again → what is shown of them; emptied when a secret is added, and when it is full.
        self._words: dict[str, str] = {}

    def register(self, secrets: Iterable[str | Secret]) -> None:
        """Hide these from now on, for ever: a session of an old configuration may still quote an old key.

        Those with fewer than ``MIN_SECRET_CHARS`` characters are left out.
        """
        before = len(self._spellings)
        for secret in secrets:
            value = (secret.reveal() if isinstance(secret, Secret) else secret).strip()
            if len(value) >= MIN_SECRET_CHARS:
                self._spellings.update(_spellings(value))
        if len(self._spellings) > before:
            # The longest first, so that a secret which begins like another one is hidden as a whole.
            ordered = sorted(self._spellings, key=lambda spelling: (-len(spelling), spelling))
            self._registered = re.compile("|".join(_pattern(spelling) for spelling in ordered))
            self._words.clear()

    @property
    def longest(self) -> int:
        """Characters of the longest spelling: how much of a secret may be left at the end of a text that was cut."""
        return max((len(spelling) for spelling in self._spellings), default=0)

    def registered(self, text: str) -> str:
        """Return the text without the secrets that were registered: for names of the configuration, which may look like a key."""
        return text if self._registered is None else self._registered.sub(MASK, text)

    def known_word(self, text: str) -> str | None:
        """What ``word`` has answered before, if it has."""
        return self._words.get(text)

    def word(self, text: str) -> str:
        """As a call does, remembering the answer: for the names of facts, of which there are few."""
        shown = self._words.get(text)
        if shown is None:
            if len(self._words) >= _MAX_WORDS:
                self._words.clear()
            shown = self._words[text] = self(text)
        return shown

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        text = self.registered(text)
        if _HINT.search(text) is not None:
            for pattern, replacement in _PATTERNS:
                text = pattern.sub(replacement, text)
        return text


def secrets_of(settings: Settings) -> Iterator[str]:
    """Yield every secret of a configuration, for ``Redactor.register``."""
    if settings.server.master_key is not None:
        yield settings.server.master_key.reveal()
    if settings.fleet is not None:
        for secret in (settings.fleet.password, settings.fleet.sentinel_password):
            if secret is not None:
                yield secret.reveal()
    for group in settings.groups.values():
        for deployment in group.deployments:
            for secret in (deployment.api_key, deployment.azure_ad_token):
                if secret is not None:
                    yield secret.reveal()
            for secret in (*deployment.extra_headers.values(), *deployment.extra_query.values()):
                value = secret.reveal()
                # Flags such as ``true`` and ``v1`` are kept with them.
                if len(value) >= _WORD_CHARS:
                    yield value
            yield from _url_secrets(deployment.proxy)
            yield from _url_secrets(deployment.api_base)


def _url_secrets(url: str | None) -> Iterator[str]:
    """A URL's password and the longer values of its query, as they stand there and as they are meant."""
    if not url:
        return
    try:
        parts = urlsplit(url)
        password = parts.password
    except ValueError:
        return
    values = [password] if password else []
    values += [value for pair in parts.query.split("&") if len(value := pair.partition("=")[2]) >= _WORD_CHARS]
    for value in values:
        yield value
        yield unquote(value)


def _spellings(secret: str) -> Iterator[str]:
    """A secret as it may stand in a text: as it is, in a URL, in JSON, in a ``repr``."""
    yield secret
    spell: Callable[[str], str]
    for spell in (lambda text: quote(text, safe="", errors="replace"), lambda text: quote_plus(text, errors="replace")):
        yield spell(secret)
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    yield repr(secret)[1:-1]


def _pattern(spelling: str) -> str:
    text = re.escape(spelling)
    return text if len(spelling) >= _WORD_CHARS else rf"(?<![\w-]){text}(?![\w-])"
