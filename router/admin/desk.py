"""Questions and acts by name, in one process: ``Views`` and ``Acts`` behind one call, with plain JSON on both sides."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from router.admin.acts import Acts
from router.admin.contract import AdminError, Args, Document
from router.admin.views import Recent, Views
from router.config.report import quoted
from router.engine import SESSION_ID, Engine
from router.logs import clean
from router.pool import UNCHANGED, Deployment


class Desk:
    """One process's answers.

    Args:
        engine: serves the sessions; its observers are joined by one that remembers the last records.
        draining: whether new sessions are refused, or about to be.
        wall_clock: epoch seconds.
    """

    def __init__(
        self, engine: Engine, *, draining: Callable[[], bool], wall_clock: Callable[[], float] = time.time
    ) -> None:
        recent = Recent(wall_clock=wall_clock)
        engine.tell.add(recent)
        self._engine = engine
        self._draining = draining
        self._views = Views(engine, recent=recent, wall_clock=wall_clock, clean=clean)
        self._acts = Acts(engine)
        self._by_name: dict[str, Callable[[Args], dict[str, Any]]] = {
            "deployments": lambda args: self._views.deployments(),
            "sessions": lambda args: self._views.sessions(**args),
            "session": self._session,
            "decisions": lambda args: self._views.decisions(**args),
            "fleet": lambda args: self._fleet(),
            "set": self._set,
            "readmit": self._readmit,
            "end": self._end,
        }

    async def ask(self, name: str, args: Args) -> Document:
        """``contract.Ask`` for a process that serves alone."""
        return self.answer(name, args)

    def answer(self, name: str, args: Args) -> dict[str, Any]:
        """Answer a question, or do an act, of ``contract.QUESTIONS`` and ``contract.ACTS``.

        Args:
            name: of it.
            args: as ``bodies`` has checked them.

        Raises:
            AdminError: it cannot be served.
            KeyError: there is no such name.
        """
        return self._by_name[name](args)

    def told(self, name: str, args: Args) -> dict[str, Any]:
        """As ``answer``, with an error as the document that travels (``AdminError.document``)."""
        try:
            return self.answer(name, args)
        except AdminError as error:
            return error.document()

    def restore(self, overrides: Iterable[Args]) -> None:
        """Take over all that operators have said; what does not fit this process's configuration is left out."""
        for deployment in self._engine.pool.deployments:
            deployment.override(state=None, weight=None)
        for args in overrides:
            self.told("set", args)

    # --- questions ----------------------------------------------------------------------------------

    def _session(self, args: Args) -> dict[str, Any]:
        session = args["session"]
        found = self._views.session(session)
        if found is None:
            raise self._no_session(session)
        return found

    def _fleet(self) -> dict[str, Any]:
        worker = {"worker": None, "pid": os.getpid(), "sessions": self._engine.sessions, "serving": not self._draining()}
        return {"fleet": self._views.fleet(), "workers": [worker], "draining": self._draining()}

    # --- acts ---------------------------------------------------------------------------------------

    def _set(self, args: Args) -> dict[str, Any]:
        state, weight = args.get("state", UNCHANGED), args.get("weight", UNCHANGED)
        return self._of(self._acts.set(args["id"], state=state, weight=weight))

    def _readmit(self, args: Args) -> dict[str, Any]:
        return self._of(self._acts.readmit(args["id"]))

    def _end(self, args: Args) -> dict[str, Any]:
        session = args["session"]
        if not self._acts.end(session, code=args["code"], reason=args["reason"]):
            raise self._no_session(session)
        return {"session": session, "ended": True}

    def _of(self, deployment: Deployment) -> dict[str, Any]:
        # The fleet is for whoever puts several workers' answers together; routes leave it out.
        return {"deployment": self._views.deployment(deployment), "fleet": self._views.fleet()}

    def _no_session(self, session: str) -> AdminError:
        near = [] if self._views.session(session) else self._views.near(session)
        expected = f"the id of a session, such as {', '.join(near)}" if near else "the id of a session that runs"
        # An id of ours looks like a credential, and is none.
        found = f"'{session}'" if SESSION_ID.fullmatch(session) else quoted(session)
        ended = ", which has ended" if self._views.session(session) else ""
        message = f"session: found {found}{ended}, expected {expected}"
        return AdminError(message, status=404, code="not_found", param="session")
