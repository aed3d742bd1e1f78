"""What every test gets: the simulator's fixture and hypothesis' profiles.

``HYPOTHESIS_PROFILE=deep`` looks longer; the default, ``fast``, is for every run.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

pytest_plugins = ["router.simulator.pytest_plugin"]

# No deadline: how long one example takes is the machine's business, and a bound in milliseconds fails on a busy one.
settings.register_profile("fast", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("deep", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))
