"""What several workers answer to operators, as one document."""

from __future__ import annotations

from typing import Any

import pytest

from router.admin import merge
from router.admin.contract import ACTS, QUESTIONS, AdminError
from router.admin.merge import Heard
from router.metrics import STATES

# --- deployments ---------------------------------------------------------------------------------


def seen(**facts: Any) -> dict[str, Any]:
    """A deployment as a worker sees it."""
    return {
        "id": "d",
        "state": "admitting",
        "obstacle": None,
        "reason": None,
        "weight": 1.0,
        "sessions": 0,
        "max_sessions": 5,
        "ready_s": None,
        "first_audio_s": None,
        "available_in_s": None,
        "sessions_elsewhere": None,
        "minute_starts": 0,
        "minute_tokens": 0,
        "headroom": None,
        "failures_in_a_row": 0,
        "ejected_s": None,
        "attempts": {},
        "started": 0,
        **facts,
    }


def document(*deployments: dict[str, Any], generation: int = 1, members: int = 2) -> dict[str, Any]:
    """A worker's document."""
    fleet = {"member": "m", "mode": "fresh", "members": members, "picture_age_s": 0.5}
    groups = [{"group": "g", "strategy": "first", "deployments": list(deployments)}]
    return {"generation": generation, "fleet": fleet, "groups": groups}


def test_one_view_of_several() -> None:
    """Sessions are summed, averages averaged, the state is that of most; what explains a state comes with it."""
    ejected = {"state": "ejected", "reason": "timeout"}
    merged = merge.merge_deployments(
        {
            1: (11, document(seen(**ejected, sessions=1, available_in_s=9.0, ready_s=2.0))),
            0: (10, document(seen(sessions=2, ready_s=1.0))),
            2: (12, document(seen(**ejected, available_in_s=7.0), generation=2)),
        },
        silent={3: 13},
    )
    assert merged["generation"] == 2
    assert merged["workers"] == [
        {"worker": 0, "pid": 10, "answered": True},
        {"worker": 1, "pid": 11, "answered": True},
        {"worker": 2, "pid": 12, "answered": True},
        {"worker": 3, "pid": 13, "answered": False},
    ]
    (group,) = merged["groups"]
    assert (group["group"], group["strategy"]) == ("g", "first")
    (one,) = group["deployments"]
    assert one == {
        **seen(),
        **ejected,
        "sessions": 3,
        "sessions_elsewhere": 0,
        "ready_s": 1.5,
        "available_in_s": 7.0,
        "workers": [
            {"worker": 0, "pid": 10, "state": "admitting", "sessions": 2, "reason": None},
            {"worker": 1, "pid": 11, **ejected, "sessions": 1},
            {"worker": 2, "pid": 12, **ejected, "sessions": 0},
        ],
    }


@pytest.mark.parametrize("states", [("admitting", "ejected"), ("ejected", "admitting")])
def test_of_two_views_the_troubled_one_is_shown(states: tuple[str, str]) -> None:
    """Whoever looks at the view looks for trouble, and the order of the workers has no say."""
    documents = {number: (number, document(seen(state=state))) for number, state in enumerate(states)}
    assert merge.merge_deployments(documents, silent={})["groups"][0]["deployments"][0]["state"] == "ejected"


def test_sessions_of_other_hosts_are_what_the_whole_has_beyond_these_workers() -> None:
    """Each worker's "elsewhere" holds its siblings; what is shown holds none of them, and is never negative."""
    facts = [{"sessions": 3, "sessions_elsewhere": 9}, {"sessions": 4, "sessions_elsewhere": 8}]
    documents = {number: (number, document(seen(**each, minute_tokens=7), members=3)) for number, each in enumerate(facts)}
    (one,) = merge.merge_deployments(documents, silent={})["groups"][0]["deployments"]
    assert (one["sessions"], one["sessions_elsewhere"], one["minute_tokens"]) == (7, 5, 7)
    for members, sessions in ((3, 0), (2, 0)):
        # One that began or ended since it was told of; and workers that are all there is.
        held = [seen(sessions=2, sessions_elsewhere=0), seen(sessions=sessions, sessions_elsewhere=2)]
        alone = {number: (number, document(one, members=members)) for number, one in enumerate(held)}
        (one,) = merge.merge_deployments(alone, silent={})["groups"][0]["deployments"]
        assert one["sessions_elsewhere"] == 0
    ended = {number: (number, document(seen(sessions=0, sessions_elsewhere=1))) for number in range(2)}
    (one,) = merge.merge_deployments(ended, silent={})["groups"][0]["deployments"]
    assert one["sessions_elsewhere"] == 0, "there is nobody else who could hold it"


def test_every_state_has_its_place() -> None:
    """A state that the order does not know would win every tie."""
    assert set(merge._BY_TROUBLE) == set(STATES)


def test_a_deployment_that_one_worker_alone_knows() -> None:
    """While a new generation comes to one after the other."""
    merged = merge.merge_deployments(
        {0: (10, document(seen())), 1: (11, document(seen(), seen(id="new", sessions=1)))}, silent={}
    )
    assert [(one["id"], one["sessions"]) for one in merged["groups"][0]["deployments"]] == [("d", 0), ("new", 1)]


def test_counts_are_sums_and_waits_are_the_shortest() -> None:
    """Attempts by outcome, starts; of those that are ejected the one that is probed first tells when."""
    merged = merge.merge_deployments(
        {
            0: (10, document(seen(state="ejected", ejected_s=9.0, attempts={"ready": 1, "timeout": 2}, started=3))),
            1: (11, document(seen(state="ejected", ejected_s=4.0, attempts={"ready": 2}, started=2, failures_in_a_row=2))),
        },
        silent={},
    )
    (one,) = merged["groups"][0]["deployments"]
    assert (one["attempts"], one["started"]) == ({"ready": 3, "timeout": 2}, 5)
    assert (one["ejected_s"], one["failures_in_a_row"]) == (4.0, 2)


# --- everything else -----------------------------------------------------------------------------


def heard(*documents: dict[str, Any], silent: int = 0) -> Heard:
    """What workers said, numbered from 0, and so many that said nothing."""
    said = {number: (10 + number, one) for number, one in enumerate(documents)}
    quiet = {len(documents) + number: 20 + number for number in range(silent)}
    workers = [{"worker": number, "pid": 10 + number, "sessions": number, "serving": True} for number in said]
    return Heard(documents=said, silent=quiet, workers=workers)


def missing(message: str = "session: found 'rs_1'") -> dict[str, Any]:
    """A worker does not know what was asked for."""
    return AdminError(message, status=404, code="not_found", param="session").document()


def test_every_question_and_act_can_be_merged() -> None:
    """One without a rule would be asked of all workers for nothing."""
    assert set(merge._MERGES) == QUESTIONS | ACTS


@pytest.mark.parametrize(("name", "moment"), [("sessions", "began_at"), ("decisions", "at")])
def test_lists_are_in_order_of_time_and_bounded(name: str, moment: str) -> None:
    """The newest of all workers come first, each with its worker's number; what is missing is said."""
    first, second = ([{moment: at} for at in times] for times in ([5.0, 1.0], [4.0, 3.0]))
    said = heard({name: first, "total": 12}, {name: second, "total": 30}, silent=1)
    merged = merge.merge(name, {"limit": 3}, said)
    assert merged[name] == [{moment: 5.0, "worker": 0}, {moment: 4.0, "worker": 1}, {moment: 3.0, "worker": 1}]
    assert merged.get("total") == (42 if name == "sessions" else None)
    assert [one["answered"] for one in merged["workers"]] == [True, True, False]


def test_a_session_is_the_one_workers_that_has_it() -> None:
    """Whoever else does not know it has no say, nor have those that are silent."""
    found = {"session": "rs_1", "decisions": [{"at": 1.0}]}
    merged = merge.merge("session", {}, heard(missing(), found, silent=1))
    assert merged == {"session": "rs_1", "decisions": [{"at": 1.0, "worker": 1}], "worker": 1}
    assert merge.merge("end", {}, heard({"session": "rs_1", "ended": True}, missing()))["ended"] is True


@pytest.mark.parametrize("name", ["session", "end"])
def test_a_session_that_nobody_has(name: str) -> None:
    """404, in the words of the worker that knows the most; but not as long as a silent one may have it."""
    longer = "session: found 'rs_1', expected the id of a session, such as rs_12"
    error = AdminError.read(merge.merge(name, {}, heard(missing(), missing(longer))))
    assert error is not None and (error.status, error.message, error.param) == (404, longer, "session")
    error = AdminError.read(merge.merge(name, {}, heard(missing(), silent=2)))
    assert error is not None and error.status == 503 and "workers 1, 2 did not answer" in error.message


@pytest.mark.parametrize("name", ["set", "readmit"])
def test_a_change_must_be_everybodys(name: str) -> None:
    """One document when all did it; 503 when one was silent; an error when nobody could."""
    done = {"deployment": seen(sessions=2), "fleet": None}
    merged = merge.merge(name, {}, heard(done, done))
    assert merged["deployment"]["sessions"] == 4 and len(merged["deployment"]["workers"]) == 2
    error = AdminError.read(merge.merge(name, {}, heard(done, silent=1)))
    assert error is not None and error.status == 503 and "worker 1 did not answer" in error.message
    error = AdminError.read(merge.merge(name, {}, heard(missing("id: found 'x'"), silent=1)))
    assert error is not None and error.status == 404


def test_a_change_that_one_worker_cannot_do() -> None:
    """While a new generation comes to one after the other, not all of them know a deployment."""
    merged = merge.merge("set", {}, heard(missing(), {"deployment": seen(), "fleet": None}))
    assert [one["worker"] for one in merged["deployment"]["workers"]] == [1]


def test_the_fleet_is_the_parents_workers() -> None:
    """Who is there is the parent's knowledge; one that drains is enough to say so."""
    fleet = {"member": "0-a", "mode": "fresh", "members": 2, "picture_age_s": 0.1}
    said = heard({"fleet": fleet, "draining": False, "workers": []}, {"fleet": fleet, "draining": True, "workers": []})
    merged = merge.merge("fleet", {}, said)
    assert merged == {"fleet": fleet, "draining": True, "workers": list(said.workers)}


@pytest.mark.parametrize("name", sorted(QUESTIONS | ACTS))
@pytest.mark.parametrize(
    "nonsense", [{}, {"error": 1}, dict.fromkeys(("sessions", "decisions", "groups", "deployment", "fleet"), 1)]
)
def test_nonsense_of_a_worker_is_no_answer(name: str, nonsense: dict[str, Any]) -> None:
    """What does not fit is one of the errors that the parent expects, or a document of that worker alone."""
    try:
        merged = merge.merge(name, {"limit": 1}, heard(nonsense, nonsense))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return
    assert name == "end" and merged == nonsense


@pytest.mark.parametrize("said", [{}, {"error": None}, {"error": "text"}])
def test_what_is_no_error_is_none(said: dict[str, Any]) -> None:
    """A document is an error only in the form in which errors travel."""
    assert AdminError.read(said) is None


def test_an_error_travels_whole() -> None:
    """Status, code, words and parameter; a status that is none becomes 500."""
    error = AdminError("words", status=409, code="conflict", param="id")
    read = AdminError.read(error.document())
    assert read is not None and read.body() == error.body()
    odd = AdminError.read({"error": {"status": 200, "message": 1}})
    assert odd is not None and odd.status == 500 and odd.body()["error"]["type"] == "server_error"
