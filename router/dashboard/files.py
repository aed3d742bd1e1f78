"""The files of ``static/``, read once. What is not among them does not exist, so no path has to be made safe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Final

PAGE: Final = "index.html"
# Stands in the page for the version in the files' addresses.
_PLACEHOLDER: Final = b"{version}"
_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        ".css": "text/css; charset=utf-8",
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".svg": "image/svg+xml",
        "": "text/plain; charset=utf-8",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticFile:
    """A file as it is sent."""

    body: bytes
    content_type: str
    etag: str  # in its quotes


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticFiles:
    """All of them.

    Attributes:
        version: changes with any of them; part of their addresses, so that a browser keeps them for ever and never mixes two
            versions.
        page: the document, which names the version.
        by_path: everything else, by its path below ``static/``.
    """

    version: str
    page: StaticFile
    by_path: Mapping[str, StaticFile]


@cache
def static_files() -> StaticFiles:
    """Read them; the first call does."""
    found = dict(_walk(files("router.dashboard").joinpath("static"), ""))
    digest = sha256()
    for path, body in sorted(found.items()):
        digest.update(f"{path}\0{len(body)}\0".encode() + body)
    version = digest.hexdigest()[:16]
    page = _file(PAGE, found.pop(PAGE).replace(_PLACEHOLDER, version.encode()))
    return StaticFiles(
        version=version,
        page=page,
        by_path=MappingProxyType({path: _file(path, body) for path, body in found.items()}),
    )


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for entry in folder.iterdir():
        path = prefix + entry.name
        found += _walk(entry, f"{path}/") if entry.is_dir() else [(path, entry.read_bytes())]
    return found


def _file(path: str, body: bytes) -> StaticFile:
    dot = path.rfind(".", path.rfind("/") + 1)
    content_type = _TYPES.get(path[dot:] if dot >= 0 else "", _TYPES[""])
    return StaticFile(body=body, content_type=content_type, etag=f'"{sha256(body).hexdigest()[:32]}"')
