"""What every test gets: the simulator's fixture, hypothesis' profiles, and signals that mean what they usually do.

``HYPOTHESIS_PROFILE=deep`` looks longer; the default, ``fast``, is for every run.
"""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

pytest_plugins = ["router.simulator.pytest_plugin"]

# No deadline: how long one example takes is the machine's business, and a bound in milliseconds fails on a busy one.
settings.register_profile("fast", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("deep", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

# A shell that starts the tests in the background has them ignore SIGINT, and the programs that they start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
