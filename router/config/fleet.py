"""``redis…`` of ``router_settings`` → the server through which replicas tell each other what they hold.

The server is named by a URL (``redis``, or LiteLLM's ``redis_url``) or by its host (``redis_host`` and what goes with it), never
by both: which of two contradicting addresses counts would be anybody's guess. What a URL says is not said again beside it. Only
the credentials have keys of their own too, so that a URL need not hold them; each of them is written in one place.

LiteLLM takes ``REDIS_URL``, ``REDIS_HOST`` and others from the environment when the file has none of these keys. This does not: a
router that shares its state with a server because of some variable would be hard to explain.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from router.config import redis_url
from router.config.report import Report, describe
from router.config.schema import RouterSettings
from router.config.sections import Environment
from router.config.settings import FleetSettings, Secret
from router.config.source import Path

_ROUTER: Final[Path] = ("router_settings",)
_URLS: Final = ("redis", "redis_url")
#: Any of these says that there is a server.
SERVER_KEYS: Final = (*_URLS, "redis_host")
# What a URL says itself.
_BESIDE_HOST: Final = ("redis_host", "redis_port", "redis_db", "redis_ssl")
_SENTINEL: Final = ("redis_sentinel_username", "redis_sentinel_password")
_FILES: Final = ("redis_ca_file", "redis_client_cert", "redis_client_key")
_KEYS: Final = (*_URLS, *_BESIDE_HOST, "redis_username", "redis_password", *_SENTINEL, *_FILES, "redis_prefix", "on_redis_loss")


def read_fleet(router: RouterSettings, *, raw: object, env: Environment, report: Report, folder: str) -> FleetSettings | None:
    """Check the keys of the server against each other.

    Args:
        router: the section, each value checked.
        raw: the section as it stands in the file.
        env: for ``os.environ/NAME``.
        report: takes the problems.
        folder: relative file names start here.

    Returns:
        The server; ``None`` when there is none, or when a problem was told.
    """
    values = {key: value for key in _KEYS if (value := getattr(router, key)) is not None}
    reader = _Reader(values=values, raw=raw if isinstance(raw, dict) else {}, env=env, report=report, folder=folder)
    return reader.read()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    values: Mapping[str, Any]
    raw: Mapping[str, object]
    env: Environment
    report: Report
    folder: str

    def read(self) -> FleetSettings | None:
        server = self._server()
        if server is None and not self._has_server:
            return None
        tls = {key: file for key in _FILES if (file := self._file(key)) is not None}
        if server is None:
            return None
        self._check_tls(server)
        self._check_sentinel(server)
        return replace(
            server,
            username=self.values.get("redis_username", server.username),
            password=self._secret("redis_password") or server.password,
            sentinel_username=self.values.get("redis_sentinel_username"),
            sentinel_password=self._secret("redis_sentinel_password"),
            ca_file=tls.get("redis_ca_file"),
            client_cert=tls.get("redis_client_cert"),
            client_key=tls.get("redis_client_key"),
            prefix=self.values.get("redis_prefix", server.prefix),
            on_loss=self.values.get("on_redis_loss", server.on_loss),
        )

    @property
    def _has_server(self) -> bool:
        """A key that has a fault of its own is not missing."""
        return any(key in self.values or self._told(key) for key in SERVER_KEYS)

    # --- the server ---

    def _server(self) -> FleetSettings | None:
        urls = [key for key in _URLS if key in self.values]
        if len(urls) > 1:
            self._error(urls[1], f"{urls[1]} beside {urls[0]}", "one of the two: they mean the same")
            return None
        if urls:
            return self._by_url(urls[0])
        if "redis_host" in self.values:
            host, port = self.values["redis_host"], self.values.get("redis_port", redis_url.PORT)
            db, tls = self.values.get("redis_db", 0), self.values.get("redis_ssl", False)
            return FleetSettings(nodes=((host, port),), db=db, tls=tls)
        if self.values and not self._has_server:
            # One cause, so one problem, where it is seen first.
            first, *others = sorted(self.values, key=self._line)
            more = f" and {len(others)} more of its keys" if others else ""
            self._error(first, f"{first}{more} without a server", "redis (a URL) or redis_host as well")
        return None

    def _by_url(self, key: str) -> FleetSettings | None:
        beside = [other for other in _BESIDE_HOST if other in self.values]
        for other in beside:
            self._error(other, f"{other} beside {key}", "one of the two: the URL says it")
        try:
            server = redis_url.parse(self.values[key])
        except redis_url.UnfitUrl as exc:
            self._error(key, exc.found, exc.expected, exc.hint)
            return None
        for other, what, value in (
            ("redis_username", "user", server.username),
            ("redis_password", "password", server.password),
        ):
            if value is not None and other in self.values:
                self._error(other, f"{other} beside the {what} in {key}", "one of the two")
        return server

    # --- what goes with it ---

    def _check_sentinel(self, server: FleetSettings) -> None:
        for key in _SENTINEL:
            if key in self.values and server.kind != "sentinel":
                self._error(key, f"{key} without sentinels", "it only with redis+sentinel://", "redis_password is the server's")

    def _check_tls(self, server: FleetSettings) -> None:
        if "redis_client_key" in self.values and self._lacks("redis_client_cert"):
            self._error("redis_client_key", "redis_client_key without redis_client_cert", "both")
        if server.tls or self._told("redis_ssl"):
            return
        for key in _FILES:
            if key in self.values:
                # Refused rather than passed over: whoever writes it takes the connection for encrypted.
                hint = "redis_ssl: true" if "redis_host" in self.values else "rediss:// in the URL"
                self._error(key, f"{key} without TLS", "TLS, or no such key", hint)

    def _file(self, key: str) -> str | None:
        name = self.values.get(key)
        if name is None:
            return None
        file = os.path.join(self.folder, name)
        if not os.path.isfile(file) or not os.access(file, os.R_OK):
            why = "cannot be read" if os.path.exists(file) else "does not exist"
            # As it stands in the file: a value of the environment is not shown.
            written, _ = self.env.resolve(self.raw.get(key), (*_ROUTER, key))
            self._error(key, f"{describe(written, (*_ROUTER, key))} for a file that {why}", "a readable file")
        return file

    # --- small things ---

    def _secret(self, key: str) -> Secret | None:
        value = self.values.get(key)
        return None if value is None else Secret(value)

    def _lacks(self, key: str) -> bool:
        return key not in self.values and not self._told(key)

    def _told(self, key: str) -> bool:
        return self.report.told_at((*_ROUTER, key))

    def _line(self, key: str) -> int:
        return self.report.document.line((*_ROUTER, key)) or 0

    def _error(self, key: str, found: str, expected: str, hint: str = "") -> None:
        self.report.error((*_ROUTER, key), found, expected, hint)
