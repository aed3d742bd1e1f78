"""YAML text → plain data with a line for every place in it. Hostile input gives problems, never a traceback.

PyYAML's pure-Python parser supplies events; the tree is built here rather than by its composer, for four reasons. The composer is
recursive (the C one crashes the process at 50,000 nested brackets), forgets where a value stood, lets a later duplicate key win
in silence, and expands aliases without a bound. Scalars are read as YAML 1.1 says, because LiteLLM's files are, with two
exceptions that only ever surprise: ``2024-10-01`` stays text (an Azure ``api_version`` is written like that), and so does
``1:30``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import yaml
from yaml.reader import Reader
from yaml.resolver import Resolver

from router.errors import ConfigError, Problem

MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 64
# Bounds the work on a dense file and the expansion of aliases ("billion laughs"); a deployment takes about 20 nodes.
MAX_NODES = 200_000
# Longer digits are a mistake, and ``int`` refuses more than 4300 of them with an exception of its own.
_MAX_NUMBER_CHARS = 400
_SEXAGESIMAL = r"[-+]?[0-9_]+(:[0-9_.]+)+"
_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class _Scalar:
    value: object
    tag: str
    line: int


@dataclass(slots=True)
class _Sequence:
    line: int
    items: list[_Node] = field(default_factory=list)


@dataclass(slots=True)
class _Mapping:
    line: int
    entries: list[tuple[_Scalar, _Node]] = field(default_factory=list)
    # A key that waits for its value; only set between the two events.
    key: _Scalar | None = None


_Node = _Scalar | _Sequence | _Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A parsed file.

    Attributes:
        file: path as the operator gave it.
        data: the root mapping: dicts with text keys, lists, and scalars (text, integers, floats, booleans, ``None``).
        lines: 1-based line of each place; merged and aliased values keep the line where they are written.
    """

    file: str
    data: dict[str, object]
    lines: Mapping[Path, int]

    def line(self, path: Sequence[str | int]) -> int | None:
        """Return the line of ``path``, or of the nearest place around it when the path itself is not in the file."""
        place = tuple(path)
        while place not in self.lines:
            if not place:
                return None
            place = place[:-1]
        return self.lines[place]


def parse(text: str, *, file: str) -> Document:
    """Parse one YAML document whose root is a mapping.

    Args:
        text: the file's content; a leading byte order mark is dropped.
        file: name for the problems.

    Raises:
        ConfigError: with every problem that could be found; a syntax error ends the search.
    """
    text = text.removeprefix("\ufeff")
    _check_characters(text, file)
    builder = _Builder(file)
    try:
        root = builder.build(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as exc:
        # Only the parser's own wording is passed on; its snippet of the file could show a key.
        mark = exc.problem_mark or exc.context_mark
        line = mark.line + 1 if mark is not None else 1
        _refuse(file, line, *_syntax_problem(exc.problem or exc.context or "broken syntax"))
    except yaml.YAMLError:
        _refuse(file, 1, "something that is not YAML", "one YAML document")
    except (ValueError, OverflowError):
        # PyYAML passes on int() and chr() failures of malformed escapes and directives without a place.
        _refuse(file, 1, "a malformed escape or directive", "one YAML document")
    if not isinstance(root, _Mapping):
        _refuse(file, root.line, describe_kind(_plain_kind(root)), "a mapping that starts with model_list:")
    expander = _Expander(file, builder.problems)
    data = expander.mapping(root, ())
    if builder.problems:
        raise ConfigError(builder.problems)
    return Document(file=file, data=data, lines=expander.lines)


def decode(raw: bytes, *, file: str) -> str:
    """Return a file's bytes as text.

    Raises:
        ConfigError: the file is larger than ``MAX_BYTES`` or not UTF-8.
    """
    if len(raw) > MAX_BYTES:
        _refuse(file, None, f"more than {MAX_BYTES} bytes", f"a configuration of at most {MAX_BYTES} bytes")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        _refuse(file, line, f"byte 0x{raw[exc.start]:02x}, which is not UTF-8", "UTF-8 text")


def format_path(path: Sequence[str | int]) -> str:
    """Spell a place the way it reads in messages: ``model_list[2].litellm_params.weight``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z_][\w-]*", part):
            text += f".{part}" if text else part
        else:
            text += f'["{printable(part)}"]'
    return text or "(document)"


def printable(text: str, limit: int = 60) -> str:
    """Make text safe for one line of a terminal or log: escapes what does not print, and shortens."""
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text[: limit + 1])
    return shown if len(text) <= limit else f"{shown[:limit]}…"


def describe_kind(value: object) -> str:
    """Say what kind of YAML value stands there, without showing it."""
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (type(None), "nothing"),
        (bool, "a boolean"),
        (int, "an integer"),
        (float, "a number"),
        (str, "text"),
        (dict, "a mapping"),
        (list, "a list"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "something else")


# --- before parsing ------------------------------------------------------------------------------


def _check_characters(text: str, file: str) -> None:
    if len(text) > MAX_BYTES:
        _refuse(file, None, f"more than {MAX_BYTES} characters", f"a configuration of at most {MAX_BYTES} bytes")
    bad = Reader.NON_PRINTABLE.search(text)
    if bad is not None:
        line = text.count("\n", 0, bad.start()) + 1
        _refuse(file, line, f"the control character U+{ord(bad.group()):04X}", "printable UTF-8 text", "save the file as UTF-8")


def _syntax_problem(problem: str) -> tuple[str, str, str]:
    if r"'\t'" in problem:
        return "a tab", "spaces for indentation", "YAML forbids tabs there"
    if "alias" in problem:
        return printable(problem, 120), "valid YAML", ""
    hint = (
        'text that starts with one of @ ` % & * ! or holds ": " must be quoted'
        if "character" in problem or "mapping" in problem
        else ""
    )
    return f"broken YAML ({printable(problem, 120)})", "valid YAML", hint


def _refuse(file: str, line: int | None, found: str, expected: str, hint: str = "") -> NoReturn:
    # ``from None``: an underlying exception quotes the file, and with it perhaps a key.
    raise ConfigError([Problem(file=file, line=line, path="(document)", found=found, expected=expected, hint=hint)]) from None


# --- events → tree -------------------------------------------------------------------------------


class _Builder:
    """Builds the tree from parser events with a stack of its own, so that nesting costs no recursion."""

    def __init__(self, file: str) -> None:
        self.problems: list[Problem] = []
        self._file = file
        # Untyped in the stubs.
        self._resolve: Callable[[type[yaml.Node], str, tuple[bool, bool]], str] = Resolver().resolve
        self._anchors: dict[str, _Node] = {}
        self._nodes = 0

    def build(self, events: Iterator[yaml.Event]) -> _Node:
        """Return the root of the only document in ``events``."""
        root: _Node | None = None
        stack: list[tuple[_Sequence | _Mapping, str | None]] = []
        for event in events:
            line = event.start_mark.line + 1 if event.start_mark is not None else 1
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    _refuse(self._file, line, "a second YAML document", "one document", "remove the '---' line")
                continue
            if isinstance(event, yaml.CollectionEndEvent):
                node, anchor = stack.pop()
                # Registered only now: an alias inside its own anchor would make an endless value.
                self._remember(anchor, node)
            elif isinstance(event, yaml.CollectionStartEvent):
                if len(stack) >= MAX_DEPTH:
                    _refuse(self._file, line, f"more than {MAX_DEPTH} levels of nesting", f"at most {MAX_DEPTH} levels")
                node = _Sequence(line) if isinstance(event, yaml.SequenceStartEvent) else _Mapping(line)
                self._check_tag(event.tag, "seq" if isinstance(node, _Sequence) else "map", line)
                self._count(line)
                if not stack:
                    root = node
                else:
                    self._attach(stack[-1][0], node)
                stack.append((node, event.anchor))
            elif isinstance(event, yaml.ScalarEvent | yaml.AliasEvent):
                self._count(line)
                leaf = self._scalar(event, line) if isinstance(event, yaml.ScalarEvent) else self._alias(event, line)
                if isinstance(event, yaml.ScalarEvent):
                    self._remember(event.anchor, leaf)
                if not stack:
                    root = leaf
                else:
                    self._attach(stack[-1][0], leaf)
        if root is None:
            _refuse(self._file, None, "an empty file", "a mapping that starts with model_list:")
        return root

    def _attach(self, parent: _Sequence | _Mapping, node: _Node) -> None:
        if isinstance(parent, _Sequence):
            parent.items.append(node)
            return
        if parent.key is None:
            parent.key = self._key(node)
            return
        parent.entries.append((parent.key, node))
        parent.key = None

    def _key(self, node: _Node) -> _Scalar:
        if isinstance(node, _Scalar) and isinstance(node.value, str):
            return node
        kind = describe_kind(_plain_kind(node))
        self._problem(
            node.line, f"{kind} as a key", "text as a key", "YAML 1.1 reads yes, no, on, off and numbers as such: quote it"
        )
        return _Scalar(f"(key on line {node.line})", _TAG + "str", node.line)

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> _Scalar:
        tag = event.tag
        if tag is None or tag == "!":
            tag = self._resolve(yaml.ScalarNode, event.value, event.implicit)
        convert = _SCALARS.get(tag.removeprefix(_TAG))
        if convert is None:
            self._problem(
                line, "a YAML tag that is not a plain type", "text, a number, a boolean, a list or a mapping", "quote it"
            )
            return _Scalar(None, _TAG + "null", line)
        try:
            return _Scalar(convert(event.value), tag, line)
        except (ValueError, LookupError, OverflowError):
            self._problem(line, f"a malformed value of {len(event.value)} characters", "a number or boolean of ordinary size")
            return _Scalar(None, _TAG + "null", line)

    def _alias(self, event: yaml.AliasEvent, line: int) -> _Node:
        known = self._anchors.get(event.anchor or "")
        if known is not None:
            return known
        # The name is not shown: an unquoted key that starts with '*' ends up here.
        self._problem(
            line, "an alias (*…) without an anchor (&…) before it", "a defined anchor", "quote text that starts with '*'"
        )
        return _Scalar(None, _TAG + "null", line)

    def _remember(self, anchor: str | None, node: _Node) -> None:
        if anchor is not None:
            self._anchors[anchor] = node

    def _check_tag(self, tag: str | None, expected: str, line: int) -> None:
        if tag not in (None, "!", _TAG + expected):
            self._problem(line, "a YAML tag that is not a plain type", "a list or a mapping without a tag")

    def _count(self, line: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            _refuse(self._file, line, f"more than {MAX_NODES} values", f"at most {MAX_NODES} values in the file")

    def _problem(self, line: int, found: str, expected: str, hint: str = "") -> None:
        self.problems.append(Problem(file=self._file, line=line, path="(document)", found=found, expected=expected, hint=hint))


def _plain_kind(node: _Node) -> object:
    if isinstance(node, _Scalar):
        return node.value
    return [] if isinstance(node, _Sequence) else {}


def _boolean(text: str) -> bool:
    return yaml.SafeLoader.bool_values[text.lower()]


def _integer(text: str) -> int | str:
    if re.fullmatch(_SEXAGESIMAL, text):
        return text  # YAML 1.1 would read 1:30 as 90
    if len(text) > _MAX_NUMBER_CHARS:
        raise ValueError("too long")
    digits = text.replace("_", "")
    sign, digits = (-1, digits[1:]) if digits.startswith("-") else (1, digits.removeprefix("+"))
    if digits.startswith(("0b", "0x")):
        return sign * int(digits, 0)
    return sign * int(digits, 8 if digits.startswith("0") and digits != "0" else 10)


def _float(text: str) -> float | str:
    if re.fullmatch(_SEXAGESIMAL, text):
        return text
    digits = text.replace("_", "").lower()
    named = {".inf": "inf", ".nan": "nan"}.get(digits.removeprefix("+").removeprefix("-"))
    if named is not None:
        return float(("-" if digits.startswith("-") else "") + named)
    return float(digits)


_SCALARS: Mapping[str, Callable[[str], object]] = {
    "str": str,
    "value": str,  # a lone "="
    "merge": str,
    "timestamp": str,
    "null": lambda text: None,
    "bool": _boolean,
    "int": _integer,
    "float": _float,
}


# --- tree → data ---------------------------------------------------------------------------------


class _Expander:
    """Turns the tree into data, follows aliases and merge keys, and notes lines. Recursion is bounded by ``MAX_DEPTH``."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.lines: dict[Path, int] = {}
        self._file = file
        self._problems = problems
        self._told: set[tuple[int, str]] = set()
        self._nodes = 0
        # Merges inside each other at the moment; only above 0 while ``_entries`` follows a ``<<``.
        self._merge_depth = 0

    def mapping(self, node: _Mapping, path: Path) -> dict[str, object]:
        """Return the dict for ``node``, whose place is ``path``."""
        self._enter(path, node.line)
        result: dict[str, object] = {}
        for key, (line, value) in self._entries(node, path).items():
            place = (*path, key)
            result[key] = self._value(value, place)
            self.lines[place] = line
        return result

    def _value(self, node: _Node, path: Path) -> object:
        if len(path) > MAX_DEPTH:
            _refuse(self._file, node.line, f"more than {MAX_DEPTH} levels through aliases", f"at most {MAX_DEPTH} levels")
        if isinstance(node, _Mapping):
            return self.mapping(node, path)
        self._enter(path, node.line)
        if isinstance(node, _Scalar):
            return node.value
        return [self._value(item, (*path, index)) for index, item in enumerate(node.items)]

    def _entries(self, node: _Mapping, path: Path) -> dict[str, tuple[int, _Node]]:
        """The mapping's own keys, then those that ``<<`` merges in and that are not there yet (YAML 1.1 merge keys)."""
        own: dict[str, tuple[int, _Node]] = {}
        merged: list[_Node] = []
        for scalar, value in node.entries:
            if scalar.tag == _MERGE:
                merged.append(value)
                continue
            key = str(scalar.value)
            if key in own:
                first = own[key][0]
                self._problem(scalar.line, (*path, key), f"the key again (first on line {first})", "each key once in a mapping")
                continue
            own[key] = (scalar.line, value)
        for value in merged:
            for source in value.items if isinstance(value, _Sequence) else [value]:
                if not isinstance(source, _Mapping):
                    self._problem(value.line, (*path, "<<"), "no mapping", "a mapping or a list of mappings to merge")
                    continue
                # Counted by size: a large mapping merged often is as much work as a large file.
                self._spend(1 + len(source.entries), source.line)
                for key, entry in self._merge_source(source, path).items():
                    own.setdefault(key, entry)
        return own

    def _merge_source(self, source: _Mapping, path: Path) -> dict[str, tuple[int, _Node]]:
        self._merge_depth += 1
        try:
            if self._merge_depth > MAX_DEPTH:
                _refuse(self._file, source.line, f"more than {MAX_DEPTH} merges inside each other", f"at most {MAX_DEPTH}")
            return self._entries(source, path)
        finally:
            self._merge_depth -= 1

    def _enter(self, path: Path, line: int) -> None:
        self._spend(1, line)
        self.lines.setdefault(path, line)

    def _spend(self, nodes: int, line: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            _refuse(self._file, line, f"aliases that unfold to more than {MAX_NODES} values", f"at most {MAX_NODES} values")

    def _problem(self, line: int, path: Path, found: str, expected: str) -> None:
        # A mapping that several aliases share is walked several times; its faults are told once.
        if (line, found) in self._told:
            return
        self._told.add((line, found))
        self._problems.append(Problem(file=self._file, line=line, path=format_path(path), found=found, expected=expected))
