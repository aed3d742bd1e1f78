"""Name → strategy class. Where names come from, in this order:

1. The built-ins, which register themselves by ``@register`` when the package is imported; then the table is closed, and
   from there on it is a constant.
2. Aliases: LiteLLM's names for strategies, so that its files load unchanged. Some stand for strategies that are not part of
   this version; ``get`` tells those apart by ``StrategyNotAvailable``, so that the caller can warn and go on with ``DEFAULT``.
3. Entry points of installed packages in the group ``realtime_router.strategies``. They are looked up only when a name is
   not built in: a scan of the installed packages takes milliseconds, and no package can replace a built-in.
4. ``module:Class``, imported as written.

Whoever can write the configuration can run code by 3 and 4; it is the operator's file, and nothing of a request gets here.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

from strategies.base import Strategy

#: Entry point group for strategies of third parties.
ENTRY_POINT_GROUP: Final = "realtime_router.strategies"
#: The strategy of a group that names none.
DEFAULT: Final = "least-connections"

# LiteLLM's names for strategies that this version lacks. A package that provides ``cost`` makes it work.
_PLANNED: Final = MappingProxyType({"cost-based-routing": "cost"})
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")

S = TypeVar("S", bound=Strategy)


class StrategyError(Exception):
    """Base of what can be wrong with the name of a strategy. The message is meant for the operator."""


class UnknownStrategy(StrategyError, LookupError):
    """Nothing goes by this name.

    Attributes:
        name: the name that was asked for.
        nearest: known names and aliases that look like it, the most alike first; may be empty.
        known: all known names, aliases left out.
    """

    def __init__(self, name: str, *, nearest: Sequence[str] = (), known: Sequence[str] = ()) -> None:
        self.name = name
        self.nearest = tuple(nearest)
        self.known = tuple(known)
        super().__init__(f"found {_quote(name)}, expected one of {', '.join(known)}, or module:Class{self._hint()}")

    def _hint(self) -> str:
        return f" (did you mean {' or '.join(self.nearest)}?)" if self.nearest else ""


class StrategyNotAvailable(UnknownStrategy):
    """A known alias of LiteLLM, whose strategy this version does not have.

    Attributes:
        canonical: the name under which the strategy would be found.
    """

    def __init__(self, name: str, *, canonical: str, known: Sequence[str]) -> None:
        self.canonical = canonical
        super().__init__(name, known=known)

    def _hint(self) -> str:
        return f" (it stands for {self.canonical}, which is not part of this version)"


class InvalidStrategy(StrategyError, TypeError):
    """The name leads somewhere, but not to a usable strategy.

    Attributes:
        name: the name that was asked for.
        reason: what was found there, and what was expected.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"{_quote(name)}: {reason}")


class Registry:
    """A table of strategies: filled by ``register``, then closed, from then on only read."""

    def __init__(self, *, planned: Mapping[str, str] = MappingProxyType({})) -> None:
        """Start an empty table.

        Args:
            planned: aliases of strategies that are not going to be registered.
        """
        self._classes: dict[str, type[Strategy]] = {}
        self._aliases: dict[str, str] = dict(planned)
        self._closed = False

    @property
    def classes(self) -> Mapping[str, type[Strategy]]:
        """Registered name → class."""
        return MappingProxyType(self._classes)

    @property
    def aliases(self) -> Mapping[str, str]:
        """Alias → name; the name of a planned one leads nowhere yet."""
        return MappingProxyType(self._aliases)

    def register(self, name: str, *, aliases: Sequence[str] = ()) -> Callable[[type[S]], type[S]]:
        """Return a class decorator that enters a strategy.

        Args:
            name: lower-case words joined by dashes, as written in the YAML.
            aliases: further names for it.

        Raises:
            ValueError: a name is malformed or taken.
            RuntimeError: the table is closed.
            InvalidStrategy: the class does not fulfil ``strategies.base.Strategy``.
        """
        for each in (name, *aliases):
            if not _NAME.fullmatch(each):
                raise ValueError(f"strategy name: found {_quote(each)}, expected lower-case words joined by dashes")
            if each in self._classes or each in self._aliases or (name, *aliases).count(each) > 1:
                raise ValueError(f"strategy name: found {_quote(each)} twice, expected every name once")
        if self._closed:
            raise RuntimeError(
                f"strategy {_quote(name)}: the table of built-ins is closed; "
                f"use an entry point in the group {ENTRY_POINT_GROUP}, or module:Class in the configuration"
            )

        def enter(cls: type[S]) -> type[S]:
            check(name, cls)
            self._classes[name] = cls
            self._aliases.update(dict.fromkeys(aliases, name))
            return cls

        return enter

    def close(self) -> None:
        """Make it read-only. A second call does nothing."""
        self._closed = True

    def canonical_name(self, name: str) -> str:
        """Resolve an alias.

        Returns:
            The registered or entry point's name; for an alias, planned ones included, the name it stands for;
            ``module:Class`` as it is, without importing it.

        Raises:
            UnknownStrategy: nothing goes by this name.
        """
        canonical = self._aliases.get(name, name)
        if canonical != name or name in self._classes or _REFERENCE.fullmatch(name) or name in _entry_points():
            return canonical
        raise self._unknown(name)

    def get(self, name: str) -> type[Strategy]:
        """Return the class for a name, an alias, an entry point or ``module:Class``.

        Raises:
            StrategyNotAvailable: an alias of LiteLLM whose strategy is missing.
            UnknownStrategy: nothing goes by this name.
            InvalidStrategy: it cannot be imported, or is not a strategy.
        """
        canonical = self._aliases.get(name, name)
        if canonical in self._classes:
            return self._classes[canonical]
        if _REFERENCE.fullmatch(canonical):
            return _load(name, canonical)
        references = _entry_points().get(canonical)
        if references is None:
            raise self._unknown(name)
        if len(references) > 1:
            raise InvalidStrategy(
                name, f"found entry points {' and '.join(sorted(references))}, expected only one package to claim it"
            )
        return _load(name, references[0])

    def known_names(self) -> tuple[str, ...]:
        """Return all names without aliases, in alphabetical order: the registered ones and those of entry points."""
        return tuple(sorted({*self._classes, *_entry_points()}))

    def _unknown(self, name: str) -> UnknownStrategy:
        import difflib  # only on the way to an error message

        known = self.known_names()
        if name in self._aliases:
            return StrategyNotAvailable(name, canonical=self._aliases[name], known=known)
        available = [*known, *(alias for alias, target in self._aliases.items() if target in known)]
        likeness = name[:64].strip().lower().replace("_", "-").replace(" ", "-")
        return UnknownStrategy(name, nearest=difflib.get_close_matches(likeness, available, n=2, cutoff=0.6), known=known)


def check(name: str, found: object) -> type[Strategy]:
    """Return ``found`` when it fulfils ``strategies.base.Strategy`` as far as that shows without calling it.

    Raises:
        InvalidStrategy: with the first thing that is missing, under ``name``.
    """
    if not isinstance(found, type):
        raise InvalidStrategy(name, f"found {_describe(found)}, expected a class")
    options = getattr(found, "Options", None)
    if not isinstance(options, type) or not dataclasses.is_dataclass(options):
        raise InvalidStrategy(name, f"found Options {_describe(options)} in {found.__qualname__}, expected a dataclass")
    # dataclasses keep this in an attribute that typeshed does not know; a changed option would change a running group.
    if not cast(Any, options).__dataclass_params__.frozen:
        raise InvalidStrategy(name, f"found a mutable dataclass {options.__qualname__}, expected @dataclass(frozen=True)")
    if not _accepts(found, object(), rng=object()):
        raise InvalidStrategy(name, f"found no __init__(self, options, *, rng) in {found.__qualname__}, expected one")
    choose = getattr(found, "choose", None)
    if not callable(choose) or not _accepts(choose, object(), object(), object()):
        raise InvalidStrategy(name, f"found no choose(self, candidates, call) in {found.__qualname__}, expected one")
    if inspect.iscoroutinefunction(choose):
        raise InvalidStrategy(name, f"found async choose in {found.__qualname__}, expected a plain function: it does no I/O")
    return cast(type[Strategy], found)


def _accepts(function: Callable[..., object], *args: object, **kwargs: object) -> bool:
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    return True


def _load(name: str, reference: str) -> type[Strategy]:
    """Import ``module:Class`` and check what is there."""
    module, _, path = reference.partition(":")
    try:
        found: object = importlib.import_module(module)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    # A foreign module runs its own code here and may fail with anything, a call of sys.exit() included.
    except (Exception, SystemExit) as exc:
        raise InvalidStrategy(name, f"found {type(exc).__name__} ({exc}), expected {reference} to be importable") from exc
    return check(name, found)


def _entry_points() -> dict[str, list[str]]:
    """Return the installed packages' strategies: name → references, more than one where packages contradict each other."""
    from importlib.metadata import entry_points  # costs more than the rest of this package together

    found: dict[str, list[str]] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        # The same package may be found twice on sys.path; equal claims are no contradiction. Extras went out of use.
        reference = point.value.partition("[")[0].replace(" ", "")
        references = found.setdefault(point.name, [])
        if reference not in references:
            references.append(reference)
    return found


def _quote(name: str) -> str:
    """A name of unknown length and content, fit for one line of a log."""
    return repr(name if len(name) <= 80 else f"{name[:77]}...")


def _describe(found: object) -> str:
    return "nothing" if found is None else f"{type(found).__name__} {_quote(str(getattr(found, '__name__', found)))}"


_BUILTIN: Final = Registry(planned=_PLANNED)

register = _BUILTIN.register
close = _BUILTIN.close
get = _BUILTIN.get
canonical_name = _BUILTIN.canonical_name
known_names = _BUILTIN.known_names
#: Alias → name. A name that ``known_names()`` lacks is of a strategy that this version does not have.
ALIASES: Final = _BUILTIN.aliases
