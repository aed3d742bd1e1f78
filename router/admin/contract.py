"""The seams of the admin API, and the errors that travel between processes. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from router.errors import Unavailable

Args = Mapping[str, Any]
Document = Mapping[str, Any]

#: Puts a question or an act (``QUESTIONS``, ``ACTS``) to every process that serves, and returns the one document that their
#: answers make. Raises ``AdminError``, and ``OSError`` (``TimeoutError`` is one) when the others cannot be asked.
Ask = Callable[[str, Args], Awaitable[Document]]

#: Names of what can be asked.
QUESTIONS: Final = frozenset({"deployments", "sessions", "session", "decisions", "fleet"})
#: Names of what can be done.
ACTS: Final = frozenset({"set", "readmit", "end"})


class AdminError(Exception):
    """A request that cannot be served, as its caller is told.

    Args:
        message: place, what was found, what was expected; no secret.
        status: HTTP status.
        code: ``error.code``.
        param: the parameter at fault, if one is.
    """

    def __init__(self, message: str, *, status: int, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param

    def document(self) -> dict[str, Any]:
        """As it travels from a worker to another."""
        return {"error": {"status": self.status, "code": self.code, "message": self.message, "param": self.param}}

    @classmethod
    def read(cls, document: Document) -> AdminError | None:
        """The error that a document is; ``None``: it is none."""
        error = document.get("error")
        if not isinstance(error, Mapping):
            return None
        status, param = error.get("status"), error.get("param")
        return cls(
            str(error.get("message", "")),
            status=status if type(status) is int and 400 <= status <= 599 else 500,
            code=str(error.get("code", "internal_error")),
            param=param if isinstance(param, str) else None,
        )

    def body(self) -> dict[str, Any]:
        """JSON in OpenAI's form."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"type": kind, "code": self.code, "message": self.message, "param": self.param}}


class Configuration(Protocol):
    """The configuration that is in force, and how it comes to another one."""

    async def describe(self) -> Document:
        """Return what ``GET /admin/config`` answers (``documents.Config``).

        Raises:
            OSError: whoever knows cannot be asked.
        """

    async def reload(self, trigger: str) -> Document:
        """Read the file again, and return the same document; a file that was refused stands in it as well.

        Args:
            trigger: ``api``.

        Raises:
            RouterError, OSError: it cannot be read again here.
        """


class FixedConfiguration:
    """A configuration that stays as it was at the start.

    Args:
        generation: its number.
        loaded_at: epoch seconds.
        file: where it stands; ``None``: in no file.
    """

    def __init__(self, *, generation: int, loaded_at: float, file: str | None = None) -> None:
        self._document: Document = {
            "generation": generation,
            "file": file,
            "loaded_at": loaded_at,
            "watching": False,
            "restart_needed": [],
            "last_reload": {"at": loaded_at, "trigger": "start", "successful": True, "errors": [], "warnings": []},
        }

    async def describe(self) -> Document:
        """Return it."""
        return self._document

    async def reload(self, trigger: str) -> Document:
        """Refuse.

        Raises:
            Unavailable: always.
        """
        raise Unavailable("this process reads its configuration at start only")
