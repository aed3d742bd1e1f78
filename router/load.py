"""A deployment's latency average: jumps up at once, comes down with time. Pure: the clock is handed in.

Why not a mean: what a caller must be kept away from is a deployment that just became slow. A plain average needs many slow
samples to notice, and voice sessions give one sample a session. Peak EWMA believes the first bad one, forgives within a few
``decay_s``, and fades while nothing is measured at all, so that a deployment which nobody chooses any more because it was
slow becomes attractive again and is measured anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable

# Samples are seconds of waiting. More than this is "never", and keeps an infinite sample from staying infinite while it decays.
MAX_SAMPLE_S = 3600.0


def blend(estimate_s: float, sample_s: float, elapsed_s: float, decay_s: float) -> float:
    """Fold a latency sample into a peak-sensitive moving average.

    A higher sample replaces the estimate at once; a lower one pulls it down with weight ``1 - exp(-elapsed_s / decay_s)``.

    Args:
        estimate_s: the average so far.
        sample_s: the new sample.
        elapsed_s: time since the estimate was made; less than zero counts as zero.
        decay_s: time in which the old estimate's weight falls to 1/e.

    Returns:
        The new average; between the two when the sample is lower.

    Raises:
        ValueError: ``decay_s`` is not positive.

    Source: Peak EWMA of Twitter Finagle (loadbalancer/PeakEwma.scala).
    """
    if not decay_s > 0.0:
        raise ValueError(f"decay_s: found {decay_s!r}, expected more than 0")
    if sample_s >= estimate_s:
        return sample_s
    kept = math.exp(-max(elapsed_s, 0.0) / decay_s)
    return estimate_s * kept + sample_s * (1.0 - kept)


class PeakEwma:
    """Peak-sensitive moving average of one kind of waiting time of one deployment.

    Reading it changes nothing, so that a dashboard that looks more often does not alter what is chosen.
    """

    __slots__ = ("_clock", "_decay_s", "_estimate_s", "_measured_s", "_stamp")

    def __init__(self, decay_s: float, clock: Callable[[], float]) -> None:
        """Start without a measurement.

        Args:
            decay_s: seconds in which the weight of the past falls to 1/e; several times the usual gap between two samples.
            clock: monotonic seconds.

        Raises:
            ValueError: ``decay_s`` is not a positive, finite number.
        """
        if not 0.0 < decay_s < math.inf:
            raise ValueError(f"decay_s: found {decay_s!r}, expected more than 0 and finite")
        self._decay_s = decay_s
        self._clock = clock
        # ``None`` until the first sample or penalty.
        self._estimate_s: float | None = None
        # The same as the last sample left it; penalties are no measurements.
        self._measured_s: float | None = None
        # When ``_estimate_s`` was made; only set once that is.
        self._stamp = -math.inf

    def observe(self, seconds: float) -> None:
        """Take a sample in seconds. One that is no number is ignored; others are cut to 0 .. ``MAX_SAMPLE_S``."""
        sample = _usable(seconds)
        if sample is None:
            return
        now = self._clock()
        before = self._estimate_s
        estimate_s = sample if before is None else blend(before, sample, now - self._stamp, self._decay_s)
        self._measured_s = estimate_s
        self._set(estimate_s, now)

    def penalise(self, seconds: float) -> None:
        """Count a failure as having taken at least ``seconds``.

        A target that fails fast would otherwise look fast and draw everything to itself (linkerd2-proxy, load-biaser).
        Unlike a sample, a penalty never lowers the average.
        """
        penalty = _usable(seconds)
        if penalty is None:
            return
        self._set(max(penalty, self.value or 0.0), self._clock())

    @property
    def value(self) -> float | None:
        """What to compare, in seconds: the average, faded towards zero for the time since the last sample.

        ``None``: nothing was measured yet.
        """
        if self._estimate_s is None:
            return None
        return blend(self._estimate_s, 0.0, self._clock() - self._stamp, self._decay_s)

    @property
    def measured(self) -> float | None:
        """What to show, in seconds: the average as the last sample left it, however long ago. ``None``: nothing yet."""
        return self._measured_s

    def _set(self, estimate_s: float, now: float) -> None:
        self._estimate_s = estimate_s
        # A clock that went back for a moment must not make the next gap look longer than it is.
        self._stamp = max(now, self._stamp)

    def __repr__(self) -> str:
        return f"PeakEwma(measured={self._estimate_s!r}, decay_s={self._decay_s:g})"


def _usable(seconds: float) -> float | None:
    if seconds >= 0.0:
        return min(seconds, MAX_SAMPLE_S)
    return 0.0 if seconds < 0.0 else None  # neither: not a number
