"""Collects the problems of one load, and decides what of a value may be shown.

A message is read in terminals, logs and tickets, so a value is shown only where it can hardly be a secret: numbers and booleans
always, text when neither its place nor its look says "credential". Everything else is named by its kind.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from router.config.source import Document, Path, describe_kind, format_path, printable
from router.errors import ConfigError, Problem

# More would only bury the first ones; the rest is counted.
MAX_PROBLEMS = 500

_SECRET_KEY = re.compile(
    r"(?:^|_)(?:key|token|secret|password|passwd|credential|credentials|auth|sha256|headers|query|url|base|proxy|redis|command)(?:_|$)"
    r"|environment_variables|private|cookie",
    re.IGNORECASE,
)
# Their values are names and numbers in spite of the word in the key.
_HARMLESS_KEYS = frozenset(
    """
    trusted_proxies forward_headers forward_query metrics_auth azure_ad_token_file client_key on_redis_loss redis_ca_file
    redis_client_cert redis_client_key redis_db redis_port redis_prefix redis_ssl
    """.split()
)
_SECRET_LOOK = re.compile(
    r"sk-[\w-]{8,}|xai-\w{16,}|ek_\w{8,}|bearer\s|basic\s|://[^/\s]*@|[?&][^=\s]*(?:key|token|sig)[^=\s]*=|-----BEGIN"
    # A run that long with letters and digits is no word that a person types; names of models have dashes in between.
    r"|(?=[\w+/=]*\d)(?=[\w+/=]*[a-zA-Z])[\w+/=]{20,}",
    re.IGNORECASE,
)
# A shorter value is likely to be part of ordinary words, and no key.
_HIDDEN_CHARS = 6
# Names of groups and ids are at most 128 long.
_QUOTED_CHARS = 130


class FromEnvironment(str):
    """A value that an environment variable or a secret's file supplied. It is never shown; only where it came from is named.

    Attributes:
        name: the variable, or the file.
        kind: which of the two, for messages.
    """

    __slots__ = ("kind", "name")

    name: str
    kind: str

    def __new__(cls, value: str, *, name: str, kind: str = "environment variable") -> FromEnvironment:
        self = super().__new__(cls, value)
        self.name = name
        self.kind = kind
        return self

    def __repr__(self) -> str:
        return f"FromEnvironment({self.name})"


class Report:
    """The problems of one file: errors, which refuse it, and warnings, which do not.

    Attributes:
        document: the file.
        errors: so far, in the order of discovery.
        warnings: the same.
        hidden: values that must not be shown wherever they got to; those of environment variables are added while they are read.
    """

    def __init__(self, document: Document) -> None:
        self.document = document
        self.hidden: set[str] = set()
        # The places of all errors and the sections around them.
        self._places: set[Path] = set()
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []

    def error(self, path: Sequence[str | int], found: str, expected: str, hint: str = "") -> None:
        """Note a fault at ``path``."""
        self.errors.append(self.problem(path, found, expected, hint))
        place = tuple(path)
        self._places.update(place[:length] for length in range(len(place) + 1))

    def warn(self, path: Sequence[str | int], found: str, expected: str, hint: str = "") -> None:
        """Note something at ``path`` that has not the effect its author may expect."""
        self.warnings.append(self.problem(path, found, expected, hint))

    def problem(self, path: Sequence[str | int], found: str, expected: str, hint: str = "") -> Problem:
        """Return the problem with file and line filled in."""
        document = self.document
        return Problem(
            file=document.file, line=document.line(path), path=format_path(path), found=found, expected=expected, hint=hint
        )

    def unknown_key(self, path: Path, known: Iterable[str]) -> None:
        """Note a key that nobody knows, with the nearest one that somebody does."""
        key = str(path[-1])
        # A comparison with every known key: not worth its time for problems that are not going to be told.
        hint = nearest(key, known) if len(self.errors) < MAX_PROBLEMS else ""
        self.error(path, f"the unknown key {quoted(key)}", "a key of this section", hint)
        if _SECRET_LOOK.search(key):
            # A colon behind a pasted secret makes it a key; the line says where it is.
            self.errors[-1] = replace(self.errors[-1], path=format_path((*path[:-1], "***")))

    def told_at(self, path: Sequence[str | int]) -> bool:
        """Whether there is an error at ``path`` or below it already; another one there would be its consequence."""
        return tuple(path) in self._places

    def raise_if_failed(self, *, files: Sequence[str] = ()) -> None:
        """Raise ``ConfigError`` with all errors so far, in the file's order.

        Args:
            files: see ``ConfigError``.
        """
        if self.errors:
            raise ConfigError(self.told(self.errors), warnings=self.told(self.warnings), files=files)

    def told(self, problems: Iterable[Problem]) -> tuple[Problem, ...]:
        """Return problems as they are told: in the file's order, each once, not endlessly many, and without hidden values."""
        # By line; within one, as they were found.
        ordered = sorted(dict.fromkeys(problems), key=lambda problem: problem.line or 0)
        # The longest first, as one value may hold another.
        values = sorted((value for value in self.hidden if len(value) >= _HIDDEN_CHARS), key=len, reverse=True)
        return tuple(_without(problem, values) for problem in limited(ordered))


def _without(problem: Problem, values: Sequence[str]) -> Problem:
    """The second line of defence: a key may have been given where a name belongs, and names are shown."""
    for value in values:
        # A value that is cut or escaped in the message is looked for in the same form.
        for form in sorted({value, printable(value), printable(value, _QUOTED_CHARS)}, key=len, reverse=True):
            if any(form in text for text in (problem.path, problem.found, problem.expected, problem.hint)):
                path, found, expected, hint = (
                    text.replace(form, "***") for text in (problem.path, problem.found, problem.expected, problem.hint)
                )
                problem = replace(problem, path=path, found=found, expected=expected, hint=hint)
    return problem


def limited(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """Keep the first ``MAX_PROBLEMS`` and say how many there are beyond."""
    if len(problems) <= MAX_PROBLEMS:
        return tuple(problems)
    last = problems[MAX_PROBLEMS]
    rest = Problem(
        file=last.file,
        line=last.line,
        path="(document)",
        found=f"{len(problems) - MAX_PROBLEMS} more problems from here on",
        expected="a file without problems",
    )
    return (*problems[:MAX_PROBLEMS], rest)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint with the known word closest to ``word`` (difflib's ratio), or nothing when none is close."""
    close = difflib.get_close_matches(word[:100].lower(), sorted(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


def describe(value: object, path: Sequence[str | int]) -> str:
    """Say what stands at ``path``, showing the value only when it can hardly be a secret."""
    if isinstance(value, FromEnvironment):
        return f"the value of the {value.kind} {printable(value.name)}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        text = str(value) if isinstance(value, float) or abs(value) < 10**20 else f"an integer of {value.bit_length()} bits"
        return "***" if is_secret_place(path) else text
    if not isinstance(value, str):
        return describe_kind(value)
    if not value:
        return "empty text"
    return "text (***)" if is_secret_place(path) else f"the text {quoted(value)}"


def quoted(text: str) -> str:
    """Return a name in quotes for a message, or asterisks when it looks like a credential."""
    return "***" if _SECRET_LOOK.search(text) else f"'{printable(text, _QUOTED_CHARS)}'"


def is_secret_place(path: Sequence[str | int]) -> bool:
    """Whether what stands at ``path`` may be a credential, judged by the keys on the way."""
    return any(isinstance(part, str) and part not in _HARMLESS_KEYS and _SECRET_KEY.search(part) for part in path)
