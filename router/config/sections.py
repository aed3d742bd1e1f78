"""From raw sections of the file to checked models: environment variables, keys without effect, pydantic's errors in our words."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from router.config.litellm import COUNTERPARTS, LATER_KEYS, LITELLM_KEYS
from router.config.report import MAX_PROBLEMS, FromEnvironment, Report, describe, nearest, quoted
from router.config.rules import UNFIT
from router.config.schema import Section
from router.config.source import Path, printable

_PREFIX = "os.environ/"
_FILE_PREFIX = "file:"
# Larger than any key or token.
_MAX_SECRET_BYTES = 64 * 1024
_VARIABLE = re.compile(r"[A-Za-z_]\w{0,127}", re.ASCII)

M = TypeVar("M", bound=Section)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something wrong at a place, before it is decided whether that refuses the file or one deployment.

    Attributes:
        path: the place.
        found: what stands there.
        expected: what would have been right.
        hint: another way out, may be empty.
        supplied: an environment variable supplied the value, so the file itself may be right.
    """

    path: Path
    found: str
    expected: str
    hint: str = ""
    supplied: bool = False


class Environment:
    """Resolves ``os.environ/NAME`` and ``file:PATH``. An empty value counts as unset.

    Variables of the file's ``environment_variables`` win over those of the process.

    Attributes:
        files: absolute names of the files that were read, or should have been.
        secrets: what the files held that could be read, by absolute name.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        own: Mapping[str, str],
        *,
        hidden: set[str],
        folder: str,
        remembered: Mapping[str, str] | None = None,
    ) -> None:
        """Start without a value read.

        Args:
            environ: the process's variables.
            own: the file's ``environment_variables``.
            hidden: takes every value that is read, so that no message shows it.
            folder: relative file names start here.
            remembered: like ``secrets``, of an earlier look; these files are not read.
        """
        self.files: set[str] = set()
        self.secrets: dict[str, str] = {}
        self._remembered = {} if remembered is None else remembered
        self._folder = folder
        self._environ = environ
        self._own = own
        self._hidden = hidden

    def get(self, name: str) -> FromEnvironment | None:
        """Return the variable's value, or ``None`` when it is unset or blank."""
        value = self._own.get(name)
        if value is not None and value.startswith(_PREFIX):
            # One step only: LiteLLM resolves such a value from the real environment too, and a loop cannot arise.
            value = self._environ.get(value.removeprefix(_PREFIX))
        elif value is None:
            value = self._environ.get(name)
        if value is None or not value.strip():
            return None
        self._hidden.add(value.strip())
        return FromEnvironment(value, name=name)

    def resolve(self, value: object, path: Path) -> tuple[object, list[Fault]]:
        """Return ``value`` with its variables filled in, ``None`` in the place of those that are not set, and these as faults."""
        faults: list[Fault] = []
        return self._resolve(value, path, faults), faults

    def _resolve(self, value: object, path: Path, faults: list[Fault]) -> object:
        if isinstance(value, dict):
            return {key: self._resolve(item, (*path, key), faults) for key, item in value.items()}
        if isinstance(value, list):
            return [self._resolve(item, (*path, index), faults) for index, item in enumerate(value)]
        if isinstance(value, str) and value.startswith(_FILE_PREFIX):
            return self._from_file(value.removeprefix(_FILE_PREFIX).strip(), path, faults)
        if not isinstance(value, str) or not value.startswith(_PREFIX):
            return value
        name = value.removeprefix(_PREFIX).strip()
        if not _VARIABLE.fullmatch(name):
            faults.append(Fault(path=path, found="os.environ/ without a variable's name after it", expected="os.environ/NAME"))
            return None
        known = self.get(name)
        if known is None:
            faults.append(
                Fault(
                    path=path,
                    found=f"the environment variable {name}, which is not set",
                    expected=f"a value for {name}",
                    supplied=True,
                )
            )
        return known

    def _from_file(self, name: str, path: Path, faults: list[Fault]) -> FromEnvironment | None:
        if not name or "\0" in name:
            faults.append(Fault(path=path, found="file: without a file's name after it", expected="file:/run/secrets/NAME"))
            return None
        file = os.path.join(self._folder, name)
        self.files.add(file)
        try:
            value = self._remembered[file] if file in self._remembered else _read_secret(file)
        except OSError as error:
            why = error.strerror or str(error)
            found = f"the file {printable(name)}, which cannot be read ({why.lower()})"
            faults.append(Fault(path=path, found=found, expected="a readable file with the value", supplied=True))
            return None
        except ValueError as error:
            found = f"the file {printable(name)}, which {error}"
            expected = f"a text file of at most {_MAX_SECRET_BYTES} bytes with the value"
            faults.append(Fault(path=path, found=found, expected=expected, supplied=True))
            return None
        self.secrets[file] = value
        self._hidden.add(value)
        return FromEnvironment(value, name=name, kind="file")


def _read_secret(file: str) -> str:
    """Return a file's text without the line break at its end.

    Raises:
        OSError: it cannot be read.
        ValueError: what is in it is no value; says what it is.
    """
    # A pipe without a writer, put there by mistake, must not block.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("is no regular file")
        data = opened.read(_MAX_SECRET_BYTES + 1)
    if len(data) > _MAX_SECRET_BYTES:
        raise ValueError("is too long")
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    if not text:
        raise ValueError("is empty")
    return text


class Ignored:
    """Keys that have no effect, told once each however many entries hold them."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._places: dict[tuple[str, str, str], list[Path]] = {}

    def strip(self, data: Mapping[str, object], *, section: str, path: Path) -> dict[str, object]:
        """Return ``data`` without the keys that mean nothing here, and note them."""
        foreign = LITELLM_KEYS.get(section, frozenset())
        # A group takes what router_settings takes, so it also excuses what router_settings excuses.
        if section == "groups":
            foreign = LITELLM_KEYS["router_settings"]
        later = LATER_KEYS.get(section, frozenset())
        kept: dict[str, object] = {}
        for key, value in data.items():
            if key in later:
                self._places.setdefault((section, key, "has no effect in this version"), []).append((*path, key))
            elif key in foreign:
                self._places.setdefault((section, key, "is LiteLLM's and has no effect here"), []).append((*path, key))
            else:
                kept[key] = value
        return kept

    def tell(self) -> None:
        """Turn what was noted into warnings."""
        for (section, key, reason), places in self._places.items():
            hints = [COUNTERPARTS.get((section, key), "")]
            if len(places) > 1:
                hints.append(f"and in {len(places) - 1} more places")
            hint = "; ".join(part for part in hints if part)
            self._report.warn(places[0], f"the key {key!r}, which {reason}", "no such key", hint)


def validate(
    model: type[M], data: Mapping[str, object], path: Path, *, ignore: Collection[Path] = ()
) -> tuple[M | None, list[Fault]]:
    """Check a section.

    Args:
        model: what it should be.
        data: the section, variables resolved.
        path: its place in the file.
        ignore: places whose faults are known already (variables that are not set).

    Returns:
        The model, or ``None`` together with the faults.
    """
    try:
        return model.model_validate(data), []
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
        faults = [_fault(model, error, path, with_hint=number < MAX_PROBLEMS) for number, error in enumerate(errors)]
        return None, [fault for fault in faults if fault.path not in ignore]


def check_section(
    model: type[M], raw: object, *, section: str, path: Path, env: Environment, ignored: Ignored, report: Report
) -> M:
    """Check a section of the router itself, where every fault refuses the file.

    Returns:
        The model; without what is faulty, so that the checks behind it can go on and find more.
    """
    if raw is None:
        return model()
    if not isinstance(raw, dict):
        report.error(path, describe(raw, path), "a mapping")
        return model()
    data, unset = env.resolve(ignored.strip(raw, section=section, path=path), path)
    assert isinstance(data, dict)  # a mapping stays one; for the type checker
    checked, faults = validate(model, data, path, ignore=[fault.path for fault in unset])
    tell(report, [*unset, *faults])
    # An unset variable left a hole that may be legal in itself.
    return checked if checked is not None and not unset else salvage(model, data, [*unset, *faults], path)[0]


def tell(report: Report, faults: Iterable[Fault]) -> None:
    """Report faults as errors."""
    for fault in faults:
        report.error(fault.path, fault.found, fault.expected, fault.hint)


def salvage(model: type[M], data: Mapping[str, object], faults: Iterable[Fault], path: Path) -> tuple[M, dict[str, object]]:
    """Check a section again without what is faulty, so that the checks behind it can find more.

    Returns:
        The model, and the data that it was made of.
    """
    bad = {fault.path[len(path) :] for fault in faults}
    for depth in (None, 1):
        kept = _without(data, {place[:depth] for place in bad})
        assert isinstance(kept, dict)  # a mapping stays one; for the type checker
        checked, _ = validate(model, kept, path)
        if checked is not None:
            return checked, kept
    return model(), {}


def _without(value: object, bad: Collection[Path], place: Path = ()) -> object:
    """Leave out faulty keys. A list with a faulty item is left out as a whole: its other items would change their numbers."""
    if isinstance(value, list):
        return [_without(item, bad, (*place, index)) for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    kept: dict[str, object] = {}
    for key, item in value.items():
        inner = (*place, key)
        spoilt = isinstance(item, list) and any((*inner, index) in bad for index in range(len(item)))
        if inner not in bad and not spoilt:
            kept[key] = _without(item, bad, inner)
    return kept


def _fault(model: type[Section], error: Mapping[str, Any], path: Path, *, with_hint: bool) -> Fault:
    location: tuple[str | int, ...] = tuple(part for part in error["loc"] if part != "[key]")
    place = (*path, *location)
    value: object = error["input"]
    kind: str = error["type"]
    if kind == "extra_forbidden":
        key = str(location[-1])
        hint = _advice(key) or nearest(key, _fields(model, location[:-1])) if with_hint else ""
        found = f"the unknown key {quoted(key)}"
        return Fault(path=place, found=found, expected="a key of this section", hint=hint)
    supplied = isinstance(value, FromEnvironment)
    found = "nothing" if value is None else describe(value, place)
    if kind == UNFIT:
        context = error["ctx"]
        return Fault(path=place, found=found, expected=context["expected"], hint=context["hint"], supplied=supplied)
    kinds = {"list_type": "a list", "dict_type": "a mapping", "model_type": "a mapping", "model_attributes_type": "a mapping"}
    # Any other kind is pydantic's own wording, which says what it expects and never quotes the value.
    return Fault(path=place, found=found, expected=kinds.get(kind, str(error["msg"])), supplied=supplied)


def _advice(key: str) -> str:
    if key == "key":
        return "a key itself is never stored here: 'realtime-router key new' prints one and the hash for sha256"
    return ""


def _fields(model: type[Section], location: Sequence[str | int]) -> Iterable[str]:
    """The keys that the section at ``location`` below ``model`` may have."""
    for part in location:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        model = _nested(model.model_fields[part].annotation) or model
    return model.model_fields


def _nested(annotation: object) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _nested(part)) is not None), None)
