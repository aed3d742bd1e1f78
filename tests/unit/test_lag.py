"""The sampler of the event loop's lag, on a clock that moves by hand."""

from __future__ import annotations

import asyncio

import pytest

from router.lag import LoopLag
from tests.helpers.clock import ManualClock

INTERVAL_S = 0.001


class Samples:
    """Collects samples and wakes up who waits for them."""

    def __init__(self) -> None:
        self.seconds: asyncio.Queue[float] = asyncio.Queue()

    def __call__(self, seconds: float) -> None:
        self.seconds.put_nowait(seconds)


async def test_a_late_timer_is_seen_with_its_lateness() -> None:
    """What the clock went on beyond the interval while nothing ran is the sample."""
    clock, samples = ManualClock(), Samples()
    lag = LoopLag(samples, interval_s=INTERVAL_S, clock=clock)
    lag.start()
    clock.advance(INTERVAL_S + 0.75)
    assert await samples.seconds.get() == pytest.approx(0.75)
    lag.stop()


async def test_one_block_is_one_sample_and_sampling_goes_on() -> None:
    """The timer after a block is measured from its own beginning; one that fires early counts as 0, not less."""
    clock, samples = ManualClock(), Samples()
    lag = LoopLag(samples, interval_s=INTERVAL_S, clock=clock)
    lag.start()
    clock.advance(3.0)
    assert await samples.seconds.get() == pytest.approx(3.0 - INTERVAL_S)
    # The clock stands still: each further timer fires "early".
    assert [await samples.seconds.get() for _ in range(3)] == [0.0, 0.0, 0.0]
    lag.stop()


async def test_nothing_is_sampled_after_the_end() -> None:
    """``stop`` cancels the timer, twice is once, and it can be started again."""
    samples = Samples()
    lag = LoopLag(samples, interval_s=INTERVAL_S, clock=ManualClock())
    lag.start()
    lag.start()
    lag.stop()
    lag.stop()
    fired = asyncio.Event()
    asyncio.get_running_loop().call_later(5 * INTERVAL_S, fired.set)
    await fired.wait()
    assert samples.seconds.empty()
    lag.start()
    assert await samples.seconds.get() == 0.0
    lag.stop()


async def test_whoever_is_told_may_stop_it() -> None:
    """A stop from within the callback is the last that happens."""
    told: list[float] = []
    fired = asyncio.Event()

    def observe(seconds: float) -> None:
        told.append(seconds)
        lag.stop()
        asyncio.get_running_loop().call_later(5 * INTERVAL_S, fired.set)

    lag = LoopLag(observe, interval_s=INTERVAL_S, clock=ManualClock())
    lag.start()
    await fired.wait()
    assert told == [0.0]


def test_it_needs_a_running_loop() -> None:
    """Outside an event loop it says so instead of never sampling."""
    with pytest.raises(RuntimeError):
        LoopLag(lambda seconds: None).start()


@pytest.mark.parametrize("interval_s", [0.0, -1.0, float("nan")])
def test_an_interval_that_is_none_is_refused(interval_s: float) -> None:
    """An interval of nothing would keep the loop busy for ever."""
    with pytest.raises(ValueError, match="interval_s: found"):
        LoopLag(lambda seconds: None, interval_s=interval_s)
