"""What an operator does in one process. Each act is done when it returns, or was refused and has changed nothing."""

from __future__ import annotations

import difflib

from router.admin.contract import AdminError
from router.config.report import quoted
from router.config.settings import DeploymentState
from router.engine import Engine
from router.pool import UNCHANGED, Deployment, Unchanged


class Acts:
    """Acts on an engine.

    Args:
        engine: serves the sessions.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def find(self, id: str) -> Deployment:
        """The deployment of an id.

        Raises:
            AdminError: 404.
        """
        known: list[str] = []
        for deployment in self._engine.pool.deployments:
            if deployment.id == id:
                return deployment
            known.append(deployment.id)
        near = difflib.get_close_matches(id, known, n=3, cutoff=0.5)
        expected = f"one of {', '.join(map(quoted, near))}" if near else _expected(known)
        raise AdminError(f"id: found {quoted(id)}, expected {expected}", status=404, code="not_found", param="id")

    def set(
        self,
        id: str,
        *,
        state: DeploymentState | Unchanged | None = UNCHANGED,
        weight: float | Unchanged | None = UNCHANGED,
    ) -> Deployment:
        """Let a state or weight win over the file's; ``None`` gives it back to the file.

        Raises:
            AdminError: 404; 409 when the word would be without effect.
        """
        deployment = self.find(id)
        if isinstance(state, str):
            if deployment.removed:
                raise _conflict(f"id: found {quoted(id)}, which is gone from the file and drains, expected one that is there")
            if deployment.settings.state == "misconfigured":
                problem = deployment.settings.problem or "the file says why"
                raise _conflict(f"id: found {quoted(id)}, which is misconfigured ({problem}), expected one that could work")
        try:
            deployment.override(state=state, weight=weight)
        except ValueError as error:
            raise AdminError(str(error), status=400, code="invalid_request") from None
        return deployment

    def readmit(self, id: str) -> Deployment:
        """End an ejection and a cool-down.

        Raises:
            AdminError: 404.
        """
        deployment = self.find(id)
        deployment.readmit()
        return deployment

    def end(self, session: str, *, code: int, reason: str) -> bool:
        """End a session; return whether there is one here."""
        return self._engine.end_session(session, code=code, reason=reason)


def _expected(known: list[str]) -> str:
    if not known:
        return "nothing, for there is no deployment"
    shown = ", ".join(map(quoted, known[:5]))
    return f"one of {shown}" + (f" and {len(known) - 5} more" if len(known) > 5 else "")


def _conflict(message: str) -> AdminError:
    return AdminError(message, status=409, code="conflict", param="id")
