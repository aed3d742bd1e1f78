"""The answers of several workers as one document (``contract.QUESTIONS``, ``contract.ACTS``). Pure.

What a worker did not say in time is missing: a view says which workers answered, and what must be of all fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from router.admin.contract import AdminError, Args, Document

# Of as many workers that see one state as see another, those count that see more trouble: an operator looks for it.
_BY_TROUBLE: Final = ("admitting", "probing", "cooling_down", "draining", "maint", "ejected", "misconfigured")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What came of a question.

    Attributes:
        documents: worker's number → its process id and what it says.
        silent: those that did not answer in time, number → process id.
        workers: all that are there: number, process id, sessions as last heard, whether it serves.
    """

    documents: Mapping[int, tuple[int, Document]]
    silent: Mapping[int, int]
    workers: Sequence[Document] = ()


def merge(name: str, args: Args, heard: Heard) -> dict[str, Any]:
    """Return one document, or one error as a document (``AdminError.document``).

    Args:
        name: of the question or the act.
        args: of it.
        heard: at least one worker.

    Raises:
        KeyError, TypeError, ValueError, IndexError: what the workers say does not fit together.
    """
    try:
        return _MERGES[name](args, heard)
    except AdminError as error:
        return error.document()


# --- deployments ---------------------------------------------------------------------------------


def merge_deployments(documents: Mapping[int, tuple[int, Document]], *, silent: Mapping[int, int]) -> dict[str, Any]:
    """Return one document for ``GET /admin/deployments``.

    ``sessions_elsewhere`` are those of processes that are none of these workers; ``fleet`` is as the first worker sees it.
    A deployment's ``state`` is the one that most workers see, and what explains it (``obstacle``, ``reason``, …) is theirs; its
    sessions are the sum; ``workers`` tells what each sees.

    Args:
        documents: worker's number → its process id and what it says; at least one.
        silent: those that did not answer in time, number → process id.
    """
    ordered = sorted(documents.items())
    groups: dict[str, dict[str, Any]] = {}
    views: dict[str, dict[str, list[tuple[int, int, Document]]]] = {}
    for number, (pid, document) in ordered:
        for group in document["groups"]:
            groups.setdefault(group["group"], {**group})
            for deployment in group["deployments"]:
                views.setdefault(group["group"], {}).setdefault(deployment["id"], []).append((number, pid, deployment))
    others = _others([document.get("fleet") for _, (_, document) in ordered], len(documents) + len(silent))
    for name, group in groups.items():
        group["deployments"] = [_deployment(seen, others=others) for seen in views.get(name, {}).values()]
    return {
        **ordered[0][1][1],
        "generation": max(document["generation"] for _, (_, document) in ordered),
        "workers": _answered(documents, silent),
        "groups": list(groups.values()),
    }


def _deployment(seen: Sequence[tuple[int, int, Document]], *, others: bool) -> dict[str, Any]:
    counts = Counter(one["state"] for _, _, one in seen)
    state = max(counts, key=lambda word: (counts[word], _BY_TROUBLE.index(word) if word in _BY_TROUBLE else len(_BY_TROUBLE)))
    of_state = [one for _, _, one in seen if one["state"] == state]
    waits_s = [one["available_in_s"] for one in of_state if one["available_in_s"] is not None]
    ejected_s = [one["ejected_s"] for one in of_state if one["ejected_s"] is not None]
    outcomes: Counter[str] = Counter()
    for _, _, one in seen:
        outcomes.update(one["attempts"])
    return {
        **of_state[0],
        "weight": max(one["weight"] for _, _, one in seen),
        "sessions": sum(one["sessions"] for _, _, one in seen),
        "sessions_elsewhere": _elsewhere([one for _, _, one in seen]) if others else 0,
        "minute_starts": max(one["minute_starts"] for _, _, one in seen),
        "minute_tokens": max(one["minute_tokens"] for _, _, one in seen),
        "ready_s": _mean(one["ready_s"] for _, _, one in seen),
        "first_audio_s": _mean(one["first_audio_s"] for _, _, one in seen),
        "available_in_s": min(waits_s, default=None),
        "ejected_s": min(ejected_s, default=None),
        "failures_in_a_row": max(one["failures_in_a_row"] for _, _, one in seen),
        "attempts": dict(outcomes),
        "started": sum(one["started"] for _, _, one in seen),
        "workers": [
            {"worker": number, "pid": pid, "state": one["state"], "sessions": one["sessions"], "reason": one["reason"]}
            for number, pid, one in seen
        ],
    }


def _others(fleets: Iterable[Document | None], known: int) -> bool:
    """Whether the fleet has members that are none of these workers."""
    return any(fleet is not None and fleet["members"] > known for fleet in fleets)


def _elsewhere(seen: Sequence[Document]) -> int:
    """The fleet's sessions without those of these workers, each of which knows the whole as of another moment."""
    own: list[int] = [one["sessions"] for one in seen]
    elsewhere: list[int] = [one["sessions_elsewhere"] or 0 for one in seen]
    return max(0, max(map(sum, zip(own, elsewhere, strict=True))) - sum(own))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# --- sessions, decisions, the fleet --------------------------------------------------------------


def _sessions(args: Args, heard: Heard) -> dict[str, Any]:
    found = _entries(heard, "sessions")
    found.sort(key=lambda one: float(one["began_at"]), reverse=True)
    total = sum(int(document["total"]) for _, document in heard.documents.values())
    return {"sessions": found[: args["limit"]], "total": total, "workers": _answered(heard.documents, heard.silent)}


def _decisions(args: Args, heard: Heard) -> dict[str, Any]:
    found = _entries(heard, "decisions")
    found.sort(key=lambda one: float(one["at"]), reverse=True)
    return {"decisions": found[: args["limit"]], "workers": _answered(heard.documents, heard.silent)}


def _entries(heard: Heard, name: str) -> list[dict[str, Any]]:
    return [
        {**entry, "worker": number}
        for number, (_, document) in sorted(heard.documents.items())
        for entry in document[name]
    ]


def _session(args: Args, heard: Heard) -> dict[str, Any]:
    number, document = _the_one(heard)
    decisions = [{**decision, "worker": number} for decision in document["decisions"]]
    return {**document, "decisions": decisions, "worker": number}


def _end(args: Args, heard: Heard) -> dict[str, Any]:
    return dict(_the_one(heard)[1])


def _the_one(heard: Heard) -> tuple[int, Document]:
    """Which worker has a session, and what it says.

    Raises:
        AdminError: none has, or one that did not answer may.
    """
    errors: list[AdminError] = []
    for number, (_, document) in sorted(heard.documents.items()):
        error = AdminError.read(document)
        if error is None:
            return number, document
        errors.append(error)
    if heard.silent:
        raise _unanswered(heard, "which may have the session")
    # Whoever knows of ids like this one says more.
    raise max(errors, key=lambda error: len(error.message))


def _fleet(args: Args, heard: Heard) -> dict[str, Any]:
    ordered = [document for _, (_, document) in sorted(heard.documents.items())]
    return {
        "fleet": ordered[0]["fleet"],
        "workers": [dict(worker) for worker in heard.workers],
        "draining": any(bool(document["draining"]) for document in ordered),
    }


# --- acts ----------------------------------------------------------------------------------------


def _changed(args: Args, heard: Heard) -> dict[str, Any]:
    """A deployment that every worker was to change."""
    ordered = sorted(heard.documents.items())
    # While a new generation comes to one worker after the other, some may not know it yet, or any more.
    done = [(number, pid, document) for number, (pid, document) in ordered if AdminError.read(document) is None]
    errors = [error for _, (_, document) in ordered if (error := AdminError.read(document)) is not None]
    if not done:
        raise errors[0]
    if heard.silent:
        raise _unanswered(heard, "the others have done it, and who begins anew will have it done")
    others = _others([document["fleet"] for _, _, document in done], len(heard.documents))
    return {"deployment": _deployment([(number, pid, document["deployment"]) for number, pid, document in done], others=others)}


def _unanswered(heard: Heard, what: str) -> AdminError:
    numbers = ", ".join(map(str, sorted(heard.silent)))
    workers = f"worker{'s' * (len(heard.silent) > 1)} {numbers}"
    return AdminError(f"{workers} did not answer in time; {what}. Try again.", status=503, code="unavailable")


def _answered(documents: Mapping[int, tuple[int, Document]], silent: Mapping[int, int]) -> list[dict[str, Any]]:
    workers = [{"worker": number, "pid": pid, "answered": True} for number, (pid, _) in documents.items()]
    workers += [{"worker": number, "pid": pid, "answered": False} for number, pid in silent.items()]
    return sorted(workers, key=lambda worker: int(worker["worker"]))


_MERGES: Final[Mapping[str, Callable[[Args, Heard], dict[str, Any]]]] = {
    "deployments": lambda args, heard: merge_deployments(heard.documents, silent=heard.silent),
    "sessions": _sessions,
    "session": _session,
    "decisions": _decisions,
    "fleet": _fleet,
    "set": _changed,
    "readmit": _changed,
    "end": _end,
}
