"""What only all workers together know or can do: metrics, the views of operators, and their acts.

A worker is asked by somebody outside; it asks the parent, which asks every worker, puts together what they say, and answers. One
that does not answer in time is left out, and waited for no more until it has.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from router.admin import merge as views
from router.admin.contract import ACTS, QUESTIONS, Args
from router.admin.overrides import Configured, Overrides
from router.events import Notice, Observers
from router.metrics import Page
from router.workers import merge
from router.workers.channel import Message
from router.workers.messages import Nonsense
from router.workers.slots import Worker

#: Longest wait for workers to say what only all of them know.
GATHER_S: Final = 1.0
#: What metrics are asked for by.
METRICS: Final = "metrics"
# Work that can wait is done in slices of this length: hard limits of the fleet wait for 50 ms at most.
_SLICE_S: Final = 0.005
# Questions to all that may be under way at a time; nobody has so many different ones.
_MOST: Final = 64


@dataclass(slots=True, kw_only=True, eq=False)
class _Gathering:
    """A question to all workers, or an act of all, that one or more of them have asked for.

    ``key`` is the same for the same question, so that those who ask it at the same time share the answer; every act has one of
    its own, for their order counts.
    """

    key: str
    what: str
    args: Args
    number: int
    deadline: float
    askers: list[tuple[Worker, int, str]]  # who, its question's number, and what it accepts
    waiting: set[Worker] = field(default_factory=set)
    heard: dict[Worker, Any] = field(default_factory=dict)


class Gatherings:
    """Belongs to the parent.

    Args:
        workers: all that live.
        send: tells a worker something.
        accepting: whether new sessions are served.
        own_samples: metrics that the parent itself counts.
        configured: of the generation in force, see ``router.admin.overrides``.
        tell: observers in the parent.
        clock: monotonic seconds.

    Attributes:
        overrides: what operators have said of deployments.
    """

    def __init__(
        self,
        *,
        workers: Callable[[], list[Worker]],
        send: Callable[[Worker, Message], None],
        accepting: Callable[[], bool],
        own_samples: Callable[[], merge.Packed],
        configured: Configured,
        tell: Observers,
        clock: Callable[[], float],
    ) -> None:
        self.overrides = Overrides()
        self._workers = workers
        self._send = send
        self._accepting = accepting
        self._own_samples = own_samples
        self._configured = configured
        self._tell = tell
        self._clock = clock
        self._under_way: dict[str, _Gathering] = {}
        # Who asked while the same was being gathered: what comes of that may be older than the question.
        self._next_askers: dict[str, list[tuple[Worker, int, str]]] = {}
        self._number = 0
        self._acts = 0
        # Counters of workers that are gone, as one process' metrics.
        self._gone: merge.Packed = ()
        self._slices: deque[Iterator[None]] = deque()

    # --- the clock ----------------------------------------------------------------------------------

    def due_at(self) -> float:
        """Return when ``step`` has something to do by itself."""
        if self._slices:
            return self._clock()
        return min((gathering.deadline for gathering in self._under_way.values()), default=math.inf)

    def step(self) -> None:
        """Put together what is there, as far as a slice of time goes."""
        now = self._clock()
        for gathering in list(self._under_way.values()):
            if not gathering.waiting or now >= gathering.deadline:
                self._gathered_all(gathering)
        ends = self._clock() + _SLICE_S
        while self._slices and self._clock() < ends:
            try:
                next(self._slices[0])
            except StopIteration:
                self._slices.popleft()
            except Exception as error:  # those who wait for this find out by their time limits; all else goes on
                self._slices.popleft()
                self._tell(Notice(level="error", event="answer not made", facts={"error": error}))

    # --- workers and generations --------------------------------------------------------------------

    def words(self) -> list[Args]:
        """Return what a worker that begins now has to know of what operators have said."""
        return list(self.overrides.of(self._configured))

    def serves(self, worker: Worker) -> None:
        """A worker can be told things; what was said after it was forked it does not know yet."""
        if worker.told != self.overrides.version:
            self._send(worker, {"k": "tell", "id": 0, "what": "overrides", "args": {"overrides": self.words()}})

    def gone(self, worker: Worker) -> None:
        """A worker has ended; what it has counted stays."""
        self._gone = merge.fold([self._gone, worker.samples])
        for gathering in self._under_way.values():
            gathering.waiting.discard(worker)
            gathering.heard.pop(worker, None)

    def configure(self, configured: Configured) -> None:
        """Another generation is in force."""
        self._configured = configured
        self.overrides.settle(configured)

    # --- questions ----------------------------------------------------------------------------------

    def metrics(self, worker: Worker, number: int, accept: str) -> None:
        """A worker wants the metrics of all.

        Args:
            worker: it.
            number: of its question.
            accept: the format that it accepts.
        """
        self._gather(METRICS, METRICS, {}, (worker, number, accept))

    def operators(self, worker: Worker, number: int, what: str, args: Args) -> None:
        """A worker passes on what an operator wants to know, or to be done.

        Args:
            worker: it.
            number: of its question.
            what: one of ``QUESTIONS`` or ``ACTS``.
            args: of that.

        Raises:
            Nonsense: it is no such act.
        """
        if len(self._under_way) >= _MOST:
            self._send(worker, {"k": "answer", "id": number, "error": "too many questions at the same time"})
            return
        if what in QUESTIONS:
            key = f"{what} {orjson.dumps(args, option=orjson.OPT_SORT_KEYS).decode()}"
        else:
            self._acts += 1
            key = f"{what} #{self._acts}"
        if what == "set":
            try:
                self.overrides.note(args, self._configured)
            except ValueError as error:
                raise Nonsense(str(error)) from None
        self._gather(key, what, args, (worker, number, ""))

    def told(self, worker: Worker, number: int, data: Any) -> None:
        """A worker has answered.

        Raises:
            Nonsense: to nothing that it was asked.
        """
        key = worker.owes.pop(number, None)
        if key is None:
            raise Nonsense(f"found an answer to {number}, which was not asked")
        if key == METRICS and isinstance(data, list):
            worker.samples = data
        gathering = self._under_way.get(key)
        if gathering is not None and gathering.number == number:
            gathering.waiting.discard(worker)
            if data is not None:
                gathering.heard[worker] = data

    def _gather(self, key: str, what: str, args: Args, asker: tuple[Worker, int, str]) -> None:
        if key in self._under_way:
            self._next_askers.setdefault(key, []).append(asker)
        else:
            self._begin(key, what, args, [asker])

    def _begin(self, key: str, what: str, args: Args, askers: list[tuple[Worker, int, str]]) -> None:
        self._number += 1
        under_way = {gathering.number for gathering in self._under_way.values()}
        gathering = _Gathering(
            key=key, what=what, args=args, number=self._number, deadline=self._clock() + GATHER_S, askers=askers
        )
        self._under_way[key] = gathering
        for worker in self._workers():
            if not worker.serving or worker.end.ended:
                continue
            # One that has not answered the last time is waited for no more. What is to be done it is told nevertheless.
            late = any(number not in under_way for number in worker.owes)
            if late and what not in ACTS:
                continue
            worker.owes[gathering.number] = key
            if not late:
                gathering.waiting.add(worker)
            if what == "set":
                worker.told = self.overrides.version
            self._send(worker, {"k": "tell", "id": gathering.number, "what": what, "args": args})

    def _gathered_all(self, gathering: _Gathering) -> None:
        """Put what was heard together, in slices, and go on with those who asked meanwhile."""
        del self._under_way[gathering.key]
        if gathering.what == METRICS:
            live = [*gathering.heard.values(), self._own_samples()]
            silent = [worker.samples for worker in self._workers() if worker not in gathering.heard]
            self._slices.append(self._answer_metrics(gathering.askers, live, [self._gone, *silent]))
        else:
            self._slices.append(self._answer_operators(gathering))
        if askers := self._next_askers.pop(gathering.key, None):
            self._begin(gathering.key, gathering.what, gathering.args, askers)

    def _answer_metrics(
        self, askers: list[tuple[Worker, int, str]], live: list[merge.Packed], gone: list[merge.Packed]
    ) -> Iterator[None]:
        pages = {accept: Page(accept) for _, _, accept in askers}
        for metric in merge.merge_in_slices(live, gone):
            yield
            if metric is not None:
                for page in pages.values():
                    yield from page.add_in_slices(metric)
        for worker, number, accept in askers:
            page = pages[accept]
            self._send(worker, {"k": "answer", "id": number, "body": page.body.decode(), "type": page.content_type})

    def _answer_operators(self, gathering: _Gathering) -> Iterator[None]:
        documents = {worker.number: (worker.pid, document) for worker, document in gathering.heard.items()}
        workers, accepting = self._workers(), self._accepting()
        heard = views.Heard(
            documents=documents,
            # One that does not serve yet has nothing to say, and hears of everything when it does.
            silent={worker.number: worker.pid for worker in workers if worker.serving and worker.number not in documents},
            workers=[
                {"worker": one.number, "pid": one.pid, "sessions": one.sessions, "serving": one.serving and accepting}
                for one in workers
            ],
        )
        answer: Mapping[str, Any]
        try:
            answer = {"document": views.merge(gathering.what, gathering.args, heard)}
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            answer = {"error": f"what the workers say does not fit together: {type(error).__name__}"}
        yield
        for worker, number, _ in gathering.askers:
            self._send(worker, {"k": "answer", "id": number, **answer})
