"""What a new generation does to deployments: who stays, with what, who goes, and when."""

from __future__ import annotations

from typing import Any

import pytest

from router.breaker import BreakerState
from router.generations import Change, change_of
from strategies.base import Call
from tests.helpers.running import MODEL, config_of, deployment_of, load_config
from tests.unit.test_pool import BASE, KEY, LIMITED, TIMEOUT, World, fail

OTHER = "http://127.0.0.1:8/v1"


def entry(id: str, base: str = BASE, **params: Any) -> dict[str, Any]:
    """A deployment of the group."""
    return deployment_of(base, id=id, **params)


def apply(world: World, *entries: Any, router: dict[str, Any] | None = None, **more: Any) -> Change:
    """Put another generation in force."""
    settings = load_config(config_of(*entries, router={"cooldown_jitter": 0, **(router or {})}, **more)).settings
    change = change_of(world.settings, settings)
    world.pool.apply(settings)
    world.settings = settings
    return change


def test_what_stays_keeps_its_state() -> None:
    """The same object, with its sessions, failures, cool-down and counts; weight and limits are the new ones at once."""
    world = World(entry("a", rpm=10), entry("b"))
    deployment = world.deployment
    lease = deployment.lease()
    fail(deployment, TIMEOUT, 2)
    fail(deployment, LIMITED)
    change = apply(world, entry("a", rpm=5, weight=4, max_sessions=1), entry("b"))
    assert world.deployment is deployment and change == Change(changed=("a",))
    assert (deployment.sessions, deployment.breaker.failures, deployment.cool_down.active) == (1, 2, True)
    assert (deployment.starts.used(), deployment.starts.limit, deployment.weight, deployment.max_sessions) == (4, 5, 4, 1)
    lease.release()
    assert deployment.sessions == 0


def test_what_changed_nothing_is_no_change() -> None:
    """An edit of a comment."""
    world = World(entry("a"), entry("b"))
    before = list(world.pool.deployments)
    assert apply(world, entry("a"), entry("b")) == Change()
    assert list(world.pool.deployments) == before and world.pool.leaving == ()


def test_a_mended_key_admits_at_once() -> None:
    """A refused key ejects for minutes; what was learned of it says nothing about the next one."""
    world = World(entry("a"), entry("b"))
    deployment = world.deployment
    lease = deployment.lease()
    fail(deployment, KEY)
    assert deployment.breaker.state is BreakerState.EJECTED
    apply(world, entry("a", api_key="sk-mended-0123456789"), entry("b"))
    assert world.deployment is deployment and deployment.eligible()
    # The attempt that was under way meanwhile was the old key's.
    deployment.failed(lease, KEY, 0.1, "late")
    assert deployment.eligible()
    lease.release()


def test_what_belongs_to_the_old_target_says_nothing_about_the_new_one() -> None:
    """Attempts and sessions that began before the key was mended go on to tell of the old one, for hours."""
    world = World(entry("a"), entry("b"))
    deployment = world.deployment
    lease = deployment.lease()
    assert lease.current
    apply(world, entry("a", weight=2), entry("b"))
    assert lease.current
    apply(world, entry("a", weight=2, api_key="sk-mended-0123456789"), entry("b"))
    assert not lease.current and deployment.lease().current
    before = len(world.events)
    deployment.failed(lease, LIMITED, 0.1, "late")
    deployment.failed(lease, TIMEOUT, 0.1, "late")
    deployment.ready(lease, 9.0)
    assert not deployment.cool_down.active and deployment.ready_s is None and not deployment.was_ready
    assert len(world.events) == before
    lease.release()


def test_a_limit_alone_does_not_admit() -> None:
    """Other weights and limits are no reason to trust a target that fails."""
    world = World(entry("a"), entry("b"))
    fail(world.deployment, KEY)
    apply(world, entry("a", weight=2, ready_timeout_s=1), entry("b"))
    assert world.deployment.breaker.state is BreakerState.EJECTED


def test_the_breakers_own_settings_are_the_new_ones() -> None:
    """Fewer failures are allowed from now on."""
    world = World(entry("a"), entry("b"))
    fail(world.deployment, TIMEOUT)
    apply(world, entry("a"), entry("b"), router={"allowed_fails": 2})
    fail(world.deployment, TIMEOUT)
    assert world.deployment.breaker.state is BreakerState.EJECTED


def test_what_is_removed_drains() -> None:
    """No new session, the running one goes on and gives its place back; then it is forgotten."""
    world = World(entry("a"), entry("b"))
    deployment = world.deployment
    lease = deployment.lease()
    assert apply(world, entry("b")) == Change(removed=("a",))
    assert (deployment.removed, deployment.obstacle(), deployment.state) == (True, "draining", "draining")
    assert not deployment.eligible() and list(world.pool.leaving) == [deployment] and deployment in world.pool.every
    assert deployment not in world.pool.deployments
    assert not world.pool.forget_left()
    lease.release()
    assert world.pool.forget_left() == (deployment,)
    assert not world.pool.leaving


def test_one_that_returns_goes_on_where_it_was() -> None:
    """While its sessions run it is still there."""
    world = World(entry("a"), entry("b"))
    deployment = world.deployment
    with deployment.lease():
        fail(deployment, TIMEOUT)
        apply(world, entry("b"))
        assert apply(world, entry("b"), entry("a")) == Change(added=("a",))
        assert deployment in world.pool.deployments and deployment.eligible()
        assert (deployment.sessions, deployment.breaker.failures, world.pool.leaving) == (1, 1, ())


def test_another_provider_or_group_is_another_deployment() -> None:
    """An id that was given to something else."""
    world = World(entry("a"), entry("b"))
    deployment = world.deployment
    with deployment.lease():
        apply(world, entry("a", model="other"), entry("b"))
        assert world.pool.leaving == (deployment,)
        (moved,) = world.pool.groups["other"].deployments
        assert moved is not deployment and moved.sessions == 0


def test_a_strategy_keeps_its_turns() -> None:
    """A reload must not begin every rotation anew; another strategy, or other options, is another object."""
    world = World(entry("a"), entry("b"), router={"routing_strategy": "round-robin"})
    group = world.pool.groups[MODEL]
    first = group.strategy.choose(group.deployments, Call(group=MODEL))
    apply(world, entry("a"), entry("b"), entry("c"), router={"routing_strategy": "round-robin"})
    again = world.pool.groups[MODEL]
    assert again.strategy is group.strategy and again is not group
    assert again.strategy.choose(again.deployments[:2], Call(group=MODEL)) is not first
    apply(world, entry("a"), entry("b"), router={"routing_strategy": "least-connections"})
    assert world.pool.groups[MODEL].strategy is not group.strategy


def test_a_strategy_that_cannot_be_made_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third party's may raise whatever it likes."""
    world = World(entry("a"), entry("b"))
    before = world.pool.groups
    wanted = load_config(config_of(entry("c"), router={"routing_strategy": "p2c"})).settings

    def broken(options: object, **_: object) -> None:
        raise RuntimeError("no")

    object.__setattr__(wanted.groups[MODEL].strategy, "cls", broken)
    with pytest.raises(RuntimeError):
        world.pool.apply(wanted)
    assert world.pool.groups is before and not world.deployment.removed and world.pool.leaving == ()


def test_names_follow_the_generation() -> None:
    """Aliases and groups of the new file are found, those of the old one are not."""
    world = World(entry("a"))
    apply(world, entry("b", OTHER, model="new"), router={"model_group_alias": {"nick": "new"}})
    assert world.pool.find(MODEL) is None and world.pool.find("nick") is world.pool.groups["new"]
    assert world.pool.names == ("new", "nick")
