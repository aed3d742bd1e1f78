"""What of a new generation a running process can have, and what an operator is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from router.config.loader import is_loopback
from router.config.settings import FleetSettings, ListenSettings, ListenTlsSettings, Secret, ServerSettings, Settings
from router.errors import Problem
from router.generations import History, effective, exposed

RUNNING = Settings(server=ServerSettings(master_key=Secret("k" * 20)), groups={})


def wanted(**server: Any) -> Settings:
    """The running settings with others of the process."""
    return replace(RUNNING, server=replace(RUNNING.server, **server))


def test_what_sessions_need_changes_at_once() -> None:
    """Keys, limits and levels are in force, and nothing waits."""
    new = wanted(max_sessions=5, expose_routing=True, log_level="debug", master_key=Secret("other" * 5))
    result = effective(RUNNING, new)
    assert result.settings == new and result.restart_needed == ()


def test_what_belongs_to_the_process_waits() -> None:
    """Addresses, workers and the fleet's server keep their values, and are named."""
    listen = ListenSettings(host="127.0.0.1", port=1)
    new = replace(wanted(listen=listen, ops_listen=listen, workers=3, root_path="/x", max_pending=3), fleet=FleetSettings())
    result = effective(RUNNING, new)
    assert result.settings == wanted(max_pending=3)
    assert result.restart_needed == (
        "general_settings.listen",
        "general_settings.ops_listen",
        "general_settings.workers",
        "general_settings.root_path",
        "router_settings.redis",
    )


def test_another_certificate_needs_no_restart_and_another_protocol_does() -> None:
    """Other files may be read at any time; clients that speak plain HTTP cannot be taught."""
    first, second = ListenTlsSettings(cert_file="a"), ListenTlsSettings(cert_file="b")
    changed = effective(wanted(tls=first), wanted(tls=second))
    assert changed.settings.server.tls == second and changed.restart_needed == ()
    for old, new in ((None, second), (first, None)):
        result = effective(wanted(tls=old), wanted(tls=new))
        assert result.settings.server.tls == old and result.restart_needed == ("general_settings.tls",)


def test_keys_cannot_go_while_others_reach_the_address() -> None:
    """The file is right with its loopback address, and the process still listens everywhere."""
    everywhere = replace(RUNNING, server=replace(RUNNING.server, listen=ListenSettings(host="0.0.0.0", port=4000)))
    local = replace(RUNNING, server=ServerSettings())
    result = effective(everywhere, local)
    (problem,) = exposed(result.settings, is_loopback=is_loopback, file="f.yaml")
    assert problem.path == "general_settings.master_key" and "0.0.0.0:4000" in problem.found
    loopback = effective(RUNNING, local).settings
    assert exposed(loopback, is_loopback=is_loopback, file="f") == ()
    places = (ListenSettings(host="127.0.0.1", port=1), ListenSettings(host="::", port=2))
    (problem,) = exposed(loopback, is_loopback=is_loopback, file="f", inherited=places)
    assert "systemd's socket is :::2" in problem.found


def test_no_key_any_more_is_refused_behind_a_proxy_in_force() -> None:
    """A file that drops keys and PROXY headers together is right, and the headers are there until a restart."""
    behind = wanted(proxy_protocol=True, trusted_proxies=("127.0.0.1",))
    (problem,) = exposed(effective(behind, replace(RUNNING, server=ServerSettings())).settings, is_loopback=is_loopback, file="f")
    assert problem.path == "general_settings.master_key" and "proxy_protocol" in problem.found
    assert exposed(behind, is_loopback=is_loopback, file="f") == ()


def test_the_history_is_what_the_admin_api_shows() -> None:
    """With each problem's place, what was found, and what was expected."""
    history = History(file="f.yaml", loaded_at=5.0, restart_needed=("general_settings.listen",))
    assert history.describe()["last_reload"]["at"] == 5.0
    history.at, history.trigger = 9.0, "file"
    history.errors = (Problem(file="f.yaml", line=3, path="a.b", found="x", expected="y", hint="z"),)
    assert history.describe() == {
        "generation": 1,
        "file": "f.yaml",
        "loaded_at": 5.0,
        "watching": False,
        "restart_needed": ["general_settings.listen"],
        "last_reload": {
            "at": 9.0,
            "trigger": "file",
            "successful": False,
            "errors": [
                {
                    "file": "f.yaml",
                    "line": 3,
                    "path": "a.b",
                    "found": "x",
                    "expected": "y",
                    "hint": "z",
                    "text": "f.yaml:3: a.b: found x, expected y (z)",
                }
            ],
            "warnings": [],
        },
    }
