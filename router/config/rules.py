"""What a single value may look like: one small rule a kind, used as ``Annotated`` metadata of the pydantic models.

pydantic's own types would take ``"5"`` and ``true`` for numbers, or say "Input should be a valid number" without the bounds. A
rule takes only what YAML wrote as that kind, knows its bounds, and says in one phrase what it expects. ``None`` passes: a key
without a value is a key that is not set.
"""

from __future__ import annotations

import ipaddress
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, get_args

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from router.config import redis_url
from router.config.report import FromEnvironment
from router.config.settings import ListenSettings
from router.proxies import proxy_problem

# pydantic error type of a value that a rule refused; its context holds ``expected`` and ``hint``.
UNFIT = "unfit"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_DEFAULT_PORT = 4000
#: Processes of one router.
MOST_WORKERS = 1024


class Unfit(ValueError):
    """A rule refuses a value.

    Attributes:
        expected: what would have been right.
        hint: another way out, may be empty.
    """

    def __init__(self, expected: str, hint: str = "") -> None:
        super().__init__(expected)
        self.expected = expected
        self.hint = hint


# In the JSON Schema: what stands for a value that is elsewhere.
FROM_ELSEWHERE: Final = r"^(os\.environ/|file:)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule(ABC):
    """Base of the rules: glue to pydantic.

    Attributes:
        item: the value stands in a list or mapping of its own, where nothing (``null``) is no value either.
    """

    item: bool = False

    @abstractmethod
    def parse(self, value: object) -> object:
        """Return the value as the settings hold it.

        Raises:
            Unfit: it is not what the rule expects.
        """

    @abstractmethod
    def json(self) -> dict[str, Any]:
        """Return the JSON Schema of what an editor may accept."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Called by pydantic: the rule alone decides, whatever the annotation says."""
        return core_schema.no_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Called by pydantic."""
        return self.json()

    def _validate(self, value: object) -> object:
        if value is None and not self.item:
            return None
        try:
            return self.parse(value)
        except Unfit as exc:
            raise PydanticCustomError(UNFIT, "{expected}", {"expected": exc.expected, "hint": exc.hint}) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Number(Rule):
    """A finite number within bounds, both inclusive unless ``above`` is set.

    Attributes:
        low: smallest value; with ``above`` the value must be greater than it.
        high: largest value.
        unit: plural noun for messages, such as ``seconds``.
        whole: only integers.
        text: take numeric text as well, where LiteLLM does.
    """

    low: float
    high: float
    unit: str = ""
    whole: bool = False
    above: bool = False
    text: bool = False

    def parse(self, value: object) -> object:
        """Return an ``int`` when ``whole``, else a ``float``."""
        number = self._read(value)
        if number is None or isinstance(number, bool) or not isinstance(number, int | float):
            hint = "true and false are no numbers" if isinstance(value, bool) else ""
            if isinstance(value, str) and not isinstance(value, FromEnvironment) and _as_number(value) is not None:
                hint = "write it without quotes; YAML 1.1 takes 1e3 for text, write 1000"
            raise Unfit(self.expected, hint)
        if isinstance(number, float) and not math.isfinite(number):
            raise Unfit(self.expected)
        if self.whole and isinstance(number, float):
            raise Unfit(self.expected)
        # Compared as it is, before float(): a huge int would overflow there.
        if not self.low <= number <= self.high or (self.above and number == self.low):
            raise Unfit(self.expected)
        return number if self.whole else float(number)

    @property
    def expected(self) -> str:
        """The phrase for messages."""
        kind = "a whole number" if self.whole else "a number"
        unit = f" of {self.unit}" if self.unit else ""
        lower = "above" if self.above else "from"
        upper = "and at most" if self.above else "to"
        return f"{kind}{unit} {lower} {self.low:g} {upper} {self.high:,.15g}".replace(",", "")

    def json(self) -> dict[str, Any]:
        """A JSON Schema number with its bounds."""
        low = "exclusiveMinimum" if self.above else "minimum"
        return {"type": "integer" if self.whole else "number", low: self.low, "maximum": self.high}

    def _read(self, value: object) -> object:
        if isinstance(value, FromEnvironment) or (self.text and isinstance(value, str)):
            return _as_number(value)
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag(Rule):
    """``true`` or ``false``."""

    def parse(self, value: object) -> object:
        """Return a ``bool``."""
        if isinstance(value, FromEnvironment):
            value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), value)
        if not isinstance(value, bool):
            raise Unfit("true or false")
        return value

    def json(self) -> dict[str, Any]:
        """A JSON Schema boolean."""
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice(Rule):
    """One of a few words.

    Attributes:
        words: spelling in the file → value; matched regardless of case.
    """

    words: Mapping[str, str]

    @classmethod
    def of(cls, literal: object) -> Choice:
        """Return the rule for a ``Literal`` type."""
        return cls(words={word: word for word in get_args(literal)})

    def parse(self, value: object) -> object:
        """Return the word's value."""
        if isinstance(value, str):
            for word, meaning in self.words.items():
                if value.lower() == word.lower():
                    return meaning
        words = [f"'{word}'" for word in self.words]
        raise Unfit(f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0])

    def json(self) -> dict[str, Any]:
        """A JSON Schema enumeration."""
        return {"enum": list(self.words)}


@dataclass(frozen=True, slots=True, kw_only=True)
class OneOf(Rule):
    """One of a few whole numbers."""

    numbers: tuple[int, ...]

    def parse(self, value: object) -> object:
        """Return the number."""
        number = _as_number(value) if isinstance(value, FromEnvironment) else value
        if isinstance(number, bool) or not isinstance(number, int) or number not in self.numbers:
            raise Unfit(" or ".join(str(number) for number in self.numbers))
        return number

    def json(self) -> dict[str, Any]:
        """A JSON Schema enumeration."""
        return {"type": "integer", "enum": list(self.numbers)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PathPrefix(Rule):
    """The beginning of a URL's path, such as ``/voice``."""

    def parse(self, value: object) -> object:
        """Return it without a slash at its end; ``/`` alone is no prefix."""
        if not isinstance(value, str) or not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/?", value, re.ASCII) or len(value) > 200:
            raise Unfit("a path such as /voice, of letters, digits, dots, dashes and slashes")
        if any(part in (".", "..") for part in value.split("/")):
            raise Unfit("a path such as /voice, without . and .. in it")
        return str(value).rstrip("/")

    def json(self) -> dict[str, Any]:
        """A JSON Schema string."""
        return {"type": "string"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Text(Rule):
    """Text on one line, without control characters.

    Attributes:
        what: noun for messages.
        limit: most characters.
        number: take a whole number as its digits, where LiteLLM does.
    """

    what: str = "text"
    limit: int = 4096
    number: bool = False

    def parse(self, value: object) -> object:
        """Return the text; what an environment variable supplied is stripped, because secrets often end in a line break."""
        if self.number and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
            value = str(value)
        if not isinstance(value, str):
            hint = "quote it" if isinstance(value, bool | int | float) else ""
            raise Unfit(self.what, hint)
        text = str(value.strip()) if isinstance(value, FromEnvironment) else str(value)
        if not text.strip():
            raise Unfit(f"{self.what}, not empty")
        if _CONTROL.search(text):
            raise Unfit(
                f"{self.what} on one line without control characters", "a block scalar (|) ends in a line break: use plain text"
            )
        if len(text) > self.limit:
            raise Unfit(f"{self.what} of at most {self.limit} characters")
        return self.check(text)

    def check(self, text: str) -> object:
        """Return the text if it is fit; subclasses narrow it."""
        return text

    def json(self) -> dict[str, Any]:
        """A JSON Schema string."""
        return {"type": ["string", "integer"] if self.number else "string"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Name(Text):
    """A name that becomes a metric label: bounded, printable, without spaces around it."""

    what: str = "a name"
    limit: int = 128

    def check(self, text: str) -> object:
        """Return the name."""
        if text != text.strip() or not text.isprintable():
            raise Unfit(f"{self.what} of printable characters without spaces around it")
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential(Text):
    """A key or token that goes into an HTTP header: visible ASCII without spaces."""

    what: str = "a key or token"
    limit: int = 16_384

    def check(self, text: str) -> object:
        """Return the credential."""
        _refuse_variable(text, self.what)
        if not all("!" <= char <= "~" for char in text):
            raise Unfit(f"{self.what} of visible ASCII characters without spaces")
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Password(Text):
    """A password that goes nowhere near HTTP: any characters on one line."""

    what: str = "a password"

    def check(self, text: str) -> object:
        """Return the password."""
        _refuse_variable(text, self.what)
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderValue(Text):
    """A header's or query parameter's value; numbers and booleans are written out."""

    what: str = "text"

    def parse(self, value: object) -> object:
        """Return the text."""
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, int | float):
            value = str(value) if abs(value) < 10**18 else value
        if value == "":
            return ""
        return super(HeaderValue, self).parse(value)

    def json(self) -> dict[str, Any]:
        """A JSON Schema scalar."""
        return {"type": ["string", "number", "boolean"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address(Rule):
    """``HOST:PORT``, ``[V6]:PORT``, a host alone (port 4000) or a port alone (host 127.0.0.1)."""

    expected: str = "HOST:PORT such as 127.0.0.1:4000, or a port from 0 to 65535"

    def parse(self, value: object) -> object:
        """Return ``ListenSettings``."""
        if isinstance(value, int) and not isinstance(value, bool):
            return ListenSettings(host="127.0.0.1", port=self._port(value))
        if not isinstance(value, str):
            raise Unfit(self.expected)
        text = str(value).strip()
        if text.isdecimal() and text.isascii():
            return ListenSettings(host="127.0.0.1", port=self._port(text))
        host, port = self._split(text)
        if not host:
            raise Unfit(self.expected, "to listen on every interface write 0.0.0.0:PORT")
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,253}", host) and not _is_ip(host):
            raise Unfit(self.expected)
        return ListenSettings(host=host, port=port)

    def json(self) -> dict[str, Any]:
        """Text or a port."""
        return {"type": ["string", "integer"]}

    def _split(self, text: str) -> tuple[str, int]:
        if _is_ip(text):
            return text, _DEFAULT_PORT
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            if not bracket or not _is_ip(host) or (rest and not rest.startswith(":")):
                raise Unfit(self.expected)
            return host, self._port(rest[1:]) if rest else _DEFAULT_PORT
        host, colon, port = text.rpartition(":")
        return (host, self._port(port)) if colon else (text, _DEFAULT_PORT)

    def _port(self, port: int | str) -> int:
        if isinstance(port, str):
            if not re.fullmatch(r"[0-9]{1,5}", port):
                raise Unfit(self.expected)
            port = int(port)
        if not 0 <= port <= 65535:
            raise Unfit(self.expected)
        return port


@dataclass(frozen=True, slots=True, kw_only=True)
class Host(Text):
    """A host alone: a name or an IP address, IPv6 with or without brackets."""

    what: str = "the name of a host or an IP address"
    limit: int = 255

    def check(self, text: str) -> object:
        """Return the host, without brackets."""
        try:
            return redis_url.host(text)
        except redis_url.UnfitUrl as exc:
            raise Unfit(exc.expected, exc.hint) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPrefix(Text):
    """What the names of keys in Redis start with. It stands in braces there, as a cluster's hash tag, so it holds none."""

    what: str = "1 to 64 visible ASCII characters without { and }"
    limit: int = 64

    def check(self, text: str) -> object:
        """Return the prefix."""
        if not all("!" <= char <= "~" and char not in "{}" for char in text):
            raise Unfit(self.what)
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers(Number):
    """A number of processes, or ``auto``."""

    low: float = 1
    high: float = MOST_WORKERS
    whole: bool = True

    def parse(self, value: object) -> object:
        """Return an ``int``, or the text ``auto``."""
        if isinstance(value, str) and value.strip().lower() == "auto":
            return "auto"
        try:
            # By name: slots make another class of this one, which the short form of super() does not know.
            return super(Workers, self).parse(value)
        except Unfit as exc:
            raise Unfit(f"{exc.expected}, or auto", exc.hint) from None

    def json(self) -> dict[str, Any]:
        """A number, a word, a variable or nothing."""
        number = super(Workers, self).json()
        return {"anyOf": [number, {"enum": ["auto"]}, {"type": "string", "pattern": FROM_ELSEWHERE}, {"type": "null"}]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Network(Text):
    """An IP address or a network in CIDR notation."""

    what: str = "an IP address or a network such as 10.0.0.0/8"
    limit: int = 64

    def check(self, text: str) -> object:
        """Return the network in its usual spelling, an address alone without a prefix length."""
        try:
            return str(ipaddress.ip_network(text)) if "/" in text else str(ipaddress.ip_address(text))
        except ValueError:
            pass
        try:
            hint = f"write {ipaddress.ip_network(text, strict=False)} if the whole network is meant"
        except ValueError:
            hint = ""
        raise Unfit(self.what, hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin(Text):
    """A web origin as browsers send it (RFC 6454), or ``*``."""

    what: str = "an origin such as https://app.example.com, or '*' for any"
    limit: int = 512

    def check(self, text: str) -> object:
        """Return the origin in lower case."""
        if text == "*":
            return text
        match = re.fullmatch(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?(/.*)?", text.lower())
        if match is None:
            raise Unfit(self.what, "wildcards within a host are not supported" if "*" in text else "")
        if match[4]:
            raise Unfit(f"{self.what}, without a path", "drop everything from the slash on")
        if match[3] and not 0 < int(match[3][1:]) <= 65535:
            raise Unfit(self.what)
        # Browsers leave the scheme's own port out.
        default = {"http": ":80", "https": ":443"}.get(match[1])
        return f"{match[1]}://{match[2]}" + ("" if match[3] in (None, default) else match[3])


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest(Text):
    """The SHA-256 of a virtual key: 64 hex digits, with or without ``sha256:`` before them."""

    what: str = "sha256: and 64 hex digits"

    def check(self, text: str) -> object:
        """Return the digits in lower case."""
        digits = text.lower().removeprefix("sha256:")
        if not re.fullmatch(r"[0-9a-f]{64}", digits):
            raise Unfit(self.what, "'realtime-router key new' prints a key and the hash that belongs here")
        return digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment(Rule):
    """A point in time: ISO 8601 (UTC when it names no zone) or seconds since 1970."""

    expected: str = "a date such as 2027-01-31T00:00:00Z, or seconds since 1970"
    # The year 2286; above it somebody wrote milliseconds.
    latest: float = 1e10

    def parse(self, value: object) -> object:
        """Return seconds since 1970 as ``float``."""
        if isinstance(value, str) and (number := _as_number(value)) is not None:
            value = number
        if isinstance(value, str):
            try:
                moment = datetime.fromisoformat(value.strip())
                value = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
            except (ValueError, OverflowError):
                raise Unfit(self.expected) from None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Unfit(self.expected)
        if not 0 < value <= self.latest:  # NaN fails this comparison too
            raise Unfit(self.expected, "seconds, not milliseconds" if value > self.latest else "")
        return float(value)

    def json(self) -> dict[str, Any]:
        """Text or a number."""
        return {"type": ["string", "number"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyUrl(Text):
    """The URL of an HTTP proxy, or ``none`` to dial directly; it may hold a user and a password."""

    what: str = "a proxy's URL such as http://proxy.example.com:3128"
    limit: int = 2048

    def check(self, text: str) -> object:
        """Return the URL."""
        problem = proxy_problem(text)
        if problem is not None:
            raise Unfit(problem.partition(", expected ")[2] or self.what)
        return text


def _refuse_variable(text: str, what: str) -> None:
    """Refuse what asks for a variable in the way of some other program."""
    if re.match(r"\$\{?\w+\}?$|os\.(environ|getenv)|\{\{|env[.:/]", text):
        raise Unfit(f"{what} itself, or os.environ/NAME for an environment variable", "no other way to name a variable is known")


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _as_number(text: str) -> int | float | None:
    """Read plain digits, with or without a fraction or exponent; ``None`` when it is something else."""
    text = text.strip()
    if len(text) > 40 or not re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?", text, re.ASCII):
        return None
    try:
        return int(text)
    except ValueError:
        return float(text)
