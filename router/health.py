"""Active probing of one deployment: a session is opened, its first good event awaited, and closed again.

Off by default, for every probe is a session that the provider may bill. It finds a dead deployment before a client does and
readmits a mended one without a client's time. Probes begin at least ``interval_s`` apart; jitter only ever lengthens that.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from router.errors import Overloaded, UpstreamError
from router.events import Observers, Probed
from router.pool import Deployment
from router.providers import error_kind
from router.providers.base import Forward
from router.retry import Outcome, classify
from router.routing import Admission
from router.upstream import Dialer

# So that replicas and deployments do not probe in step.
_JITTER: Final = 0.1
_MAX_MESSAGE_BYTES: Final = 1024 * 1024


class Prober:
    """Probes one deployment for as long as ``run`` runs.

    Args:
        deployment: its settings have a ``health_check``.
        dialer: opens upstreams.
        tell: observers.
        clock: monotonic seconds.
        rng: for the jitter.
        admission: asked before each probe of a deployment with ``max_sessions``: a probe is a session like others.
    """

    def __init__(
        self,
        deployment: Deployment,
        *,
        dialer: Dialer,
        tell: Observers,
        clock: Callable[[], float],
        rng: random.Random,
        admission: Admission | None = None,
    ) -> None:
        check = deployment.settings.health_check
        if check is None:
            raise ValueError(f"deployment {deployment.id} has no health_check")
        self._deployment = deployment
        self._dialer = dialer
        self._tell = tell
        self._clock = clock
        self._rng = rng
        self._admission = admission
        self._interval_s = check.interval_s
        self._settings = replace(deployment.settings, timeout_s=check.timeout_s)

    async def run(self) -> None:
        """Probe until cancelled. The first probe comes within one interval."""
        await asyncio.sleep(self._interval_s * self._rng.random())
        while True:
            await self.probe()
            await asyncio.sleep(self._interval_s * (1 + _JITTER * self._rng.random()))

    async def probe(self) -> Outcome | None:
        """Probe once. Returns how it ended; ``None`` when there was no room for a probe."""
        deployment = self._deployment
        # A probe must not take a session's place, nor press a deployment that asked to be left alone.
        if deployment.obstacle():
            return None
        started = self._clock()
        with deployment.lease() as lease:
            if self._admission is not None and not await self._admission.admit(lease):
                lease.turned_away()
                return None
            try:
                upstream = await self._dialer.dial(self._settings, Forward(), max_message_bytes=_MAX_MESSAGE_BYTES)
            except UpstreamError as error:
                seconds = self._clock() - started
                verdict = classify(error, kind_of=partial(error_kind, deployment.provider))
                deployment.failed(lease, verdict, seconds, str(error))
                self._report(verdict.outcome, seconds, str(error))
                return verdict.outcome
            except Overloaded:
                return None
            seconds = self._clock() - started
            upstream.close()
            deployment.ready(lease, seconds)
            deployment.survived()
            self._report(Outcome.READY, seconds, "")
            return Outcome.READY

    def _report(self, outcome: Outcome, seconds: float, detail: str) -> None:
        settings = self._deployment.settings
        self._tell(
            Probed(deployment=settings.id, group=settings.group, outcome=outcome.value, seconds=seconds, detail=detail)
        )
