"""Deployments' live state: leases, eligibility, what outcomes do; and groups over them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from router.events import Admitted, ConfigAlarm, CooledDown, Ejected, Event, Observers
from router.fleet.picture import vector
from router.pool import Deployment, Pool
from router.retry import Outcome, Verdict
from tests.helpers.clock import ManualClock
from tests.helpers.fleets import Process
from tests.helpers.fleets import World as Fleets
from tests.helpers.running import MODEL, config_of, deployment_of, load_config

BASE = "http://127.0.0.1:9/v1"
TIMEOUT = Verdict(outcome=Outcome.TIMEOUT, blames=True, transient=True)
KEY = Verdict(outcome=Outcome.AUTHENTICATION, blames=True, transient=False)
LIMITED = Verdict(outcome=Outcome.RATE_LIMITED, blames=False, transient=False, retry_after_s=7.0)
BLAMELESS = Verdict(outcome=Outcome.CLIENT_REQUEST, blames=False, transient=False)


class World:
    """A pool on a clock that moves by hand, with everything it told."""

    def __init__(self, *entries: Any, router: dict[str, Any] | None = None, **params: Any) -> None:
        self.clock = ManualClock()
        self.events: list[Event] = []
        config = config_of(*(entries or (BASE,)), router={"cooldown_jitter": 0, **(router or {})}, **params)
        self.settings = load_config(config).settings
        self.pool = Pool(self.settings, clock=self.clock, rng=random.Random(5), tell=Observers([self.events.append]))

    @property
    def deployment(self) -> Deployment:
        """The first one."""
        return next(self.pool.deployments)


def fail(deployment: Deployment, verdict: Verdict, times: int = 1, *, seconds: float = 0.1) -> None:
    """Let attempts fail."""
    for _ in range(times):
        with deployment.lease() as lease:
            deployment.failed(lease, verdict, seconds, "seen")


def test_a_lease_counts_until_it_is_released_once() -> None:
    """Whoever releases twice (a cancelled session does) gives back one place."""
    deployment = World().deployment
    first, second = deployment.lease(), deployment.lease()
    assert deployment.sessions == 2
    first.release()
    first.release()
    assert deployment.sessions == 1
    with second:
        pass
    assert deployment.sessions == 0


def test_a_lease_is_released_when_its_block_raises() -> None:
    """No exit keeps a place."""
    deployment = World().deployment
    with pytest.raises(RuntimeError, match="boom"), deployment.lease():
        raise RuntimeError("boom")
    assert deployment.sessions == 0


def test_a_full_deployment_takes_no_session() -> None:
    """``max_sessions`` is seen the moment a lease is taken, and nobody knows when it will pass."""
    deployment = World(max_sessions=2).deployment
    leases = [deployment.lease()]
    assert deployment.eligible()
    leases.append(deployment.lease())
    assert deployment.obstacle() == "full" and not deployment.eligible()
    assert deployment.available_in_s() is None
    leases[0].release()
    assert deployment.eligible()


def test_rpm_counts_starts_within_a_minute() -> None:
    """Sessions that ended long ago still count in their minute, and it is known when there will be room."""
    world = World(rpm=2)
    deployment = world.deployment
    for _ in range(2):
        deployment.lease().release()
    assert deployment.obstacle() == "rate_limited"
    wait_s = deployment.available_in_s()
    assert wait_s is not None and 59 <= wait_s <= 62
    world.clock.advance(wait_s)
    assert deployment.eligible()


def test_tpm_counts_tokens_as_they_are_reported() -> None:
    """A deployment whose tokens are spent takes no new session."""
    deployment = World(tpm=100).deployment
    assert deployment.eligible()
    deployment.tokens.add(100)
    assert deployment.obstacle() == "rate_limited"


@pytest.mark.parametrize(("state", "word"), [("maint", "maint"), ("drain", "draining")])
def test_what_an_operator_took_out_takes_no_session(state: str, word: str) -> None:
    """Neither eligible nor ejected: the metric's word says why."""
    deployment = World(deployment_of(BASE, info={"state": state}), BASE).deployment
    assert deployment.obstacle() == word and deployment.state == word
    assert not deployment.eligible() and deployment.available_in_s() is None


def test_three_failures_eject_and_tell() -> None:
    """The event names reason, length and how many in a row."""
    world = World()
    fail(world.deployment, TIMEOUT, 3)
    assert world.events == [Ejected(deployment="d0", group=MODEL, reason="timeout", seconds=30.0, in_a_row=1)]
    assert world.deployment.state == "ejected" and not world.deployment.eligible()
    assert world.deployment.available_in_s() == 30.0
    world.clock.advance(30.0)
    assert world.deployment.state == "probing" and world.deployment.eligible()


def test_a_ready_probe_tells_of_the_readmission() -> None:
    """Its session then counts as one of the new time: an early end of it ejects again."""
    world = World()
    deployment = world.deployment
    fail(deployment, TIMEOUT, 3)
    world.clock.advance(30.0)
    lease = deployment.lease()
    deployment.ready(lease, 0.1)
    assert world.events[-1] == Admitted(deployment="d0", group=MODEL)
    assert deployment.weight == pytest.approx(0.1)
    deployment.failed(lease, TIMEOUT, 0.1, "ended early")
    assert deployment.state == "ejected"
    lease.release()


def test_a_probe_without_an_outcome_gives_its_place_back() -> None:
    """Its client left: the next session probes."""
    world = World()
    fail(world.deployment, TIMEOUT, 3)
    world.clock.advance(30.0)
    with world.deployment.lease():
        assert not world.deployment.eligible()
    assert world.deployment.eligible()


def test_rate_limiting_cools_down_and_ejects_nobody() -> None:
    """For as long as was asked, whatever the number of refusals."""
    world = World()
    fail(world.deployment, LIMITED, 5)
    assert {event for event in world.events} == {CooledDown(deployment="d0", group=MODEL, seconds=7.0)}
    assert world.deployment.state == "cooling_down" and world.deployment.breaker.failures == 0
    assert world.deployment.available_in_s() == 7.0
    world.clock.advance(7.0)
    assert world.deployment.eligible()


def test_an_older_dial_that_becomes_ready_does_not_end_a_cool_down() -> None:
    """Dials under way when a provider says 429 may still succeed: that is no leave to go on dialling before its time."""
    world = World()
    deployment = world.deployment
    slow = deployment.lease()
    fail(deployment, LIMITED)
    deployment.ready(slow, 1.0)
    assert deployment.obstacle() == "cooling_down"
    slow.release()


def test_a_refused_key_raises_an_alarm_and_ejects_for_minutes() -> None:
    """One is enough."""
    world = World()
    fail(world.deployment, KEY)
    assert world.events == [
        ConfigAlarm(deployment="d0", group=MODEL, detail="seen"),
        Ejected(deployment="d0", group=MODEL, reason="authentication", seconds=300.0, in_a_row=1),
    ]


def test_what_is_nobodys_fault_changes_nothing() -> None:
    """Not the breaker, not the latency."""
    world = World()
    fail(world.deployment, BLAMELESS, 10)
    assert not world.events and world.deployment.eligible()
    assert world.deployment.ready_s is None and world.deployment.breaker.failures == 0


def test_a_target_that_fails_fast_does_not_look_fast() -> None:
    """A failure counts as a whole time-out in the average that strategies compare."""
    deployment = World(connect_timeout_s=2, ready_timeout_s=3).deployment
    with deployment.lease() as lease:
        deployment.ready(lease, 0.05)
    fail(deployment, TIMEOUT, seconds=0.001)
    assert deployment.ready_s is not None and deployment.ready_s >= 5.0


def test_a_session_that_lasts_is_credited() -> None:
    """Failures before it are forgotten."""
    deployment = World().deployment
    fail(deployment, TIMEOUT, 2)
    deployment.survived()
    fail(deployment, TIMEOUT, 2)
    assert deployment.eligible()


def test_tiers_follow_order_and_then_the_file() -> None:
    """Lowest order first."""
    entries = [deployment_of(BASE, order=order) for order in (2, 0, 1, 0)]
    group = World(*entries).pool.groups[MODEL]
    assert [[deployment.id for deployment in tier] for tier in group.tiers] == [["d1", "d3"], ["d2"], ["d0"]]


def test_a_chain_names_each_group_once() -> None:
    """Circles and repetitions in ``fallbacks`` do no harm."""
    entries = [deployment_of(BASE, model=name, id=name) for name in (MODEL, "b", "c")]
    world = World(*entries, router={"fallbacks": [{MODEL: ["b", "c"]}, {"b": [MODEL]}]})
    pool = world.pool
    names = [group.settings.name for group in pool.chain(pool.groups[MODEL])]
    assert names == [MODEL, "b", "c"]
    group = pool.groups[MODEL]
    doubled = replace(group.settings, fallbacks=("b", MODEL, "b", "gone"))
    group.settings = doubled
    assert [item.settings.name for item in pool.chain(group)] == [MODEL, "b"]


def test_hidden_aliases_work_and_are_not_listed() -> None:
    """An operator keeps an old name alive without advertising it."""
    aliases = {"new": MODEL, "old": {"model": MODEL, "hidden": True}}
    pool = World(router={"model_group_alias": aliases}).pool
    assert pool.names == ("new", MODEL)
    for name in ("new", "old", MODEL):
        group = pool.find(name)
        assert group is not None and group.settings.name == MODEL
    assert pool.find("other") is None


# --- limits of a fleet ---------------------------------------------------------------------------


def heard(world: Fleets, process: Process, **told: float) -> None:
    """Let a process hear that others hold this of ``d0``."""
    process.fleet.picture.take({"d:d0": vector(**told)}, members=2, asked_at=world.clock())


def test_limits_a_minute_hold_for_the_fleet() -> None:
    """Starts and tokens of other processes count, and while they are unknown each process has its part."""
    world = Fleets(1, rpm=30, tpm=900)
    process = world.processes[0]
    deployment = process.deployment()
    heard(world, process, minute_starts=29)
    assert deployment.eligible()
    process.lease()
    assert deployment.obstacle() == "rate_limited"
    heard(world, process, minute_tokens=900)
    assert deployment.obstacle() == "rate_limited"
    heard(world, process, minute_tokens=899)
    assert deployment.obstacle() == ""
    world.advance(30)
    assert deployment.elsewhere.sessions == 0
    for _ in range(9):
        assert deployment.obstacle() == ""
        process.lease()
    assert deployment.obstacle() == "rate_limited", "10 of 30, for there are three"


def test_when_there_will_be_room_again() -> None:
    """The wait is that of the limit that is in the way; where others alone fill it, nobody here knows."""
    world = Fleets(1, rpm=30, tpm=900)
    process = world.processes[0]
    deployment = process.deployment()
    for _ in range(10):
        process.lease()
    heard(world, process, minute_starts=20)
    wait_s = deployment.available_in_s()
    assert wait_s is not None and 55 < wait_s <= 62
    heard(world, process, minute_starts=30)
    assert deployment.available_in_s() is None


def test_headroom_is_that_of_the_tightest_limit() -> None:
    """Configured limits with the others' use, and what the provider reported, here or elsewhere, until it is over."""
    world = Fleets(1, rpm=100, tpm=1000)
    process = world.processes[0]
    deployment = process.deployment()
    assert deployment.headroom == 1.0
    deployment.tokens.add(100)
    heard(world, process, minute_tokens=200, minute_starts=10)
    assert deployment.headroom == pytest.approx(0.7)
    assert deployment.minute_tokens == 300
    assert deployment.minute_starts == 10
    deployment.reported(0.8, 20)
    assert deployment.headroom == pytest.approx(0.2)
    heard(world, process, spent=0.9)
    assert deployment.headroom == pytest.approx(0.1)
    heard(world, process)
    world.advance(21)
    heard(world, process)
    assert deployment.headroom == pytest.approx(0.9)


def test_without_limits_there_is_no_headroom_to_compare() -> None:
    """A deployment without any limit has none left and none used, until its provider reports one."""
    world = Fleets(1)
    deployment = world.processes[0].deployment()
    assert deployment.headroom is None
    deployment.reported(0.25, 10_000)
    assert deployment.headroom == 0.75
    world.advance(61)
    assert deployment.headroom is None, "a report is not believed for longer than a minute"


@pytest.mark.parametrize(("spent", "seconds"), [(float("nan"), 1), (-1, 1), (1.5, 1), (0.5, float("nan")), (0.5, -1)])
def test_a_report_that_makes_no_sense_is_ignored(spent: float, seconds: float) -> None:
    """Providers' numbers are taken as hostile."""
    deployment = Fleets(1).processes[0].deployment()
    deployment.reported(spent, seconds)
    assert deployment.headroom is None


# --- operators -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "word"), [("drain", "draining"), ("maint", "maint")])
def test_an_operators_state_wins_over_the_files(state: Any, word: str) -> None:
    """In obstacle and state alike, until it is given back; a weight beside it stays."""
    deployment = World(weight=2).deployment
    deployment.override(state=state)
    assert (deployment.obstacle(), deployment.state, deployment.eligible()) == (word, word, False)
    deployment.override(weight=0.5)
    assert deployment.obstacle() == word and deployment.weight == 0.5
    deployment.override(state=None)
    assert deployment.eligible() and deployment.weight == 0.5
    deployment.override(weight=None)
    assert deployment.weight == 2.0


def test_an_operator_makes_ready_what_the_file_drains() -> None:
    """And nobody makes ready what has no key, or is gone from the file."""
    deployment = World(deployment_of(BASE, info={"state": "drain"})).deployment
    deployment.override(state="ready")
    assert deployment.eligible()
    deployment.removed = True
    assert (deployment.obstacle(), deployment.state) == ("draining", "draining")
    deployment.removed = False
    deployment.settings = replace(deployment.settings, state="misconfigured")
    assert deployment.obstacle() == "misconfigured"


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_no_strategy_can_use(weight: float) -> None:
    """It is refused, and so is a state that is nobody's to set; nothing of the rest is done then."""
    deployment = World().deployment
    with pytest.raises(ValueError, match="expected a finite number above 0"):
        deployment.override(state="drain", weight=weight)
    with pytest.raises(ValueError, match="expected ready, drain or maint"):
        deployment.override(state="misconfigured", weight=2.0)
    assert deployment.eligible() and deployment.weight == 1.0


def test_readmission_ends_an_ejection_and_a_cool_down() -> None:
    """At once, with the full weight, and told once; what was in flight says nothing about the time after it."""
    world = World(router={"allowed_fails": 1})
    deployment = world.deployment
    hanging = deployment.lease()
    fail(deployment, TIMEOUT)
    fail(deployment, LIMITED)
    assert deployment.state == "ejected" and deployment.obstacle() == "cooling_down"
    assert deployment.refusal() == ("cooling_down", "")
    deployment.readmit()
    assert deployment.eligible() and deployment.weight == 1.0 and deployment.breaker.failures == 0
    assert [event for event in world.events if isinstance(event, Admitted)] == [Admitted(deployment="d0", group=MODEL)]
    deployment.failed(hanging, TIMEOUT, 1.0, "late")
    assert deployment.eligible()
    deployment.readmit()
    assert len([event for event in world.events if isinstance(event, Admitted)]) == 1


def test_why_it_is_refused_comes_in_two_parts() -> None:
    """The obstacle, or the breaker's state with its reason; nothing of one that is eligible."""
    deployment = World(router={"allowed_fails": 1}).deployment
    assert deployment.refusal() == ("", "") and deployment.why_not() == ""
    fail(deployment, TIMEOUT)
    assert deployment.refusal() == ("ejected", "timeout") and deployment.why_not() == "ejected: timeout"
