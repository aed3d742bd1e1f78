"""What the admin API answers, as models from which the OpenAPI document is made. Pure.

Answers are put together by ``views`` and ``merge`` as plain JSON and not checked against these on their way out; tests do that.
Loaded only when somebody asks for the document: building the models takes longer than an answer.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Moment = Annotated[float, Field(description="Epoch seconds.")]
Seconds = Annotated[float, Field(ge=0, description="Seconds.")]
Count = Annotated[int, Field(ge=0)]
State = Literal["admitting", "ejected", "probing", "cooling_down", "draining", "maint", "misconfigured"]
WorkerNumber = Annotated[int | None, Field(description="Number of the worker; null or absent without workers.")]


class _Document(BaseModel):
    # More fields may come with later versions, and a client must not stumble over them.
    model_config = ConfigDict(extra="allow", defer_build=True)


class ErrorBody(_Document):
    """What was wrong, in OpenAI's form."""

    type: str
    code: str
    message: Annotated[str, Field(description="Place, what was found, what was expected.")]
    param: str | None


class Error(_Document):
    """A request that was not served."""

    error: ErrorBody


class Worker(_Document):
    """Whether a worker is in what is shown."""

    worker: int
    pid: int
    answered: Annotated[bool, Field(description="false: what only it knows is missing.")]


class Fleet(_Document):
    """What a process is among others."""

    member: str
    mode: Annotated[str, Field(description="fresh, ageing or local: how current its picture of the others is.")]
    members: Count
    picture_age_s: Seconds | None


# --- deployments ---------------------------------------------------------------------------------


class Configured(_Document):
    """What the file says."""

    state: Literal["ready", "drain", "maint", "misconfigured"]
    weight: float


class Override(_Document):
    """What an operator says; null: the file's word holds."""

    state: Literal["ready", "drain", "maint"] | None
    weight: float | None


class WorkersView(_Document):
    """What one worker sees of a deployment."""

    worker: int
    pid: int
    state: State
    sessions: Count
    reason: str | None


class Deployment(_Document):
    """A target with its live state."""

    id: str
    provider: str
    model: str
    state: State
    obstacle: Annotated[str | None, Field(description="Why no session may begin here now, its breaker aside.")]
    reason: Annotated[str | None, Field(description="Why it is ejected or misconfigured.")]
    order: int
    weight: Annotated[float, Field(description="The slow start after an ejection included.")]
    sessions: Annotated[int, Field(ge=0, description="Dials under way included.")]
    sessions_elsewhere: Annotated[int | None, Field(ge=0, description="Of other processes of the fleet; null without one.")]
    max_sessions: int | None
    ready_s: Annotated[float | None, Field(ge=0, description="Average seconds from dial to ready, as of its last session.")]
    first_audio_s: Annotated[float | None, Field(ge=0, description="Average seconds from the end of speech to the first audio.")]
    minute_starts: Count
    minute_tokens: Count
    rpm: int | None
    tpm: int | None
    headroom: Annotated[float | None, Field(ge=0, le=1, description="Share left of its tightest limit a minute.")]
    available_in_s: Annotated[float | None, Field(ge=0, description="Seconds until the obstacle passes; null: not known.")]
    failures_in_a_row: Count
    ejected_s: Annotated[float | None, Field(ge=0, description="Seconds until it is probed; null: it is not ejected.")]
    attempts: Annotated[dict[str, int], Field(description="Dials of sessions that ended, by outcome.")]
    started: Annotated[int, Field(ge=0, description="Sessions since the process began, probes included.")]
    configured: Configured
    override: Override
    removed: Annotated[bool, Field(description="Gone from the file; its sessions still run.")]
    workers: Annotated[list[WorkersView], Field(default=[], description="With several workers: what each sees.")]


class Group(_Document):
    """A public model name."""

    group: str
    strategy: str
    fallbacks: list[str]
    aliases: list[str]
    deployments: list[Deployment]


class Deployments(_Document):
    """Every group with its deployments."""

    generation: Count
    fleet: Fleet | None
    workers: Annotated[list[Worker], Field(default=[], description="With several workers: who is in these numbers.")]
    groups: list[Group]


class ChangedDeployment(_Document):
    """A deployment after the act."""

    deployment: Deployment


# --- sessions ------------------------------------------------------------------------------------


class _Session(_Document):
    session: str
    group: str
    deployment: Annotated[str | None, Field(description="null while it searches.")]
    principal: str
    client: str
    phase: Literal["waiting", "idle", "turn"]
    began_at: Moment
    seconds: Seconds
    ready_s: Seconds | None
    turns: Count
    first_audio_s: Seconds | None
    client_events: Count
    upstream_events: Count
    client_bytes: Count
    upstream_bytes: Count
    worker: WorkerNumber = None


class Session(_Session):
    """A session under way."""

    attempts: Annotated[int, Field(ge=0, description="Dials so far.")]


class Sessions(_Document):
    """Sessions under way, the newest first."""

    sessions: list[Session]
    total: Annotated[int, Field(ge=0, description="All that the filters let through, shown or not.")]
    workers: Annotated[list[Worker], Field(default=[], description="With several workers: who is in these numbers.")]


class Attempt(_Document):
    """One dial."""

    deployment: str
    outcome: Annotated[str, Field(description="ready, or why it failed; under_way: it has not ended.")]
    seconds: Seconds
    detail: str
    raced: Annotated[bool, Field(description="The session did not wait for this one.")]


class CandidateSeen(_Document):
    """A deployment that could have been chosen, as it stood then."""

    id: str
    sessions: Count
    weight: float


class PassedOver(_Document):
    """A deployment that could not be chosen, and why."""

    id: str
    reason: str


class Decision(_Document):
    """One choice of a deployment for a session."""

    at: Moment
    session: str
    group: str
    in_group: Annotated[str | None, Field(description="The group of what was chosen: a fallback's may be another one.")]
    order: int | None
    number: Annotated[int, Field(alias="pass", ge=0, description="0: nothing was dialled twice yet.")]
    attempt: Annotated[int, Field(ge=1, description="Which dial of the session this is about.")]
    candidates: list[CandidateSeen]
    passed_over: list[PassedOver]
    chosen: str | None
    why: Annotated[str, Field(description="strategy NAME, only one eligible, fail open, nothing eligible, or what was used up.")]
    left_out: Annotated[int, Field(ge=0, description="Candidates and deployments passed over that are too many to be named.")]
    worker: WorkerNumber = None


class Decisions(_Document):
    """The last choices, the newest first."""

    decisions: list[Decision]
    workers: Annotated[list[Worker], Field(default=[], description="With several workers: whose decisions these are.")]


class Ended(_Document):
    """How a session ended."""

    at: Moment
    who: Literal["client", "upstream", "router"]
    cause: str
    phase: Literal["waiting", "idle", "turn"]
    status: Annotated[int, Field(description="HTTP status that the client got: 101, or that of the refusal.")]
    client_code: int | None
    upstream_code: int | None
    upstream_reason: str
    passed_over: list[PassedOver]


class SessionDetail(_Session):
    """One session, under way or ended lately."""

    attempts: list[Attempt]
    decisions: list[Decision]
    usage: Annotated[dict[str, float], Field(description="Tokens by kind, and seconds of transcription; what is not zero.")]
    generation: Count
    ended: Annotated[Ended | None, Field(description="null while it is under way.")]


class EndedSession(_Document):
    """The end has begun."""

    session: str
    ended: Literal[True]


# --- the configuration and the fleet -------------------------------------------------------------


class Problem(_Document):
    """A fault of the file, or a warning."""

    file: str
    line: int | None
    path: str
    found: str
    expected: str
    hint: str
    text: Annotated[str, Field(description="All of it in one line.")]


class LastReload(_Document):
    """The last time the file was read."""

    at: Moment
    trigger: Literal["start", "signal", "file", "api"]
    successful: bool
    errors: list[Problem]
    warnings: list[Problem]


class Config(_Document):
    """The configuration that is in force."""

    generation: Count
    file: str | None
    loaded_at: Moment
    watching: Annotated[bool, Field(description="A change of the file is a reload.")]
    restart_needed: Annotated[list[str], Field(description="Places in the file whose change waits for a restart.")]
    last_reload: LastReload


class RefusedConfig(_Document):
    """A file that was refused; the configuration that was in force still is."""

    error: ErrorBody
    config: Config


class FleetWorker(_Document):
    """A process that serves."""

    worker: WorkerNumber
    pid: int
    sessions: Count
    serving: Annotated[bool, Field(description="Not while it starts, and not while the router drains.")]


class FleetView(_Document):
    """This router's processes, and what they are among others."""

    fleet: Fleet | None
    workers: list[FleetWorker]
    draining: bool
