"""Time that moves only when a test says so."""

from __future__ import annotations


class ManualClock:
    """A monotonic clock in seconds: call it to read it, ``advance`` it by hand."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass (or, to be nasty, go back)."""
        self.now += seconds
