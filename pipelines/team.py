"""Threads that all blocks of a worker share. What came first is done first.

Blocks that begin together do not end together then: the first one is packed and compressed by all threads, and while
the disk takes it they work on the next. With threads of its own for each block all would want the cores at the same
time, and then the disk.
"""

import os
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import count
from queue import PriorityQueue
from threading import Lock, Thread
from typing import Any, TypeVar

from pipelines.threads import results_of

T = TypeVar("T")

_Job = tuple[float, int, "Future[Any] | None", Callable[[], Any]]  # turn, ticket; no future: the thread may go
_FIRST, _LAST = -1.0, float("inf")


class Team:
    """So many threads, started at the first call; a team of one has none, callers do their work themselves.

    A forked process has none of its parent's threads: there they are started again, and its parent's work is left out.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self._turns, self._tickets = count(), count()
        self._begin()
        _teams.add(self)

    def _begin(self) -> None:
        self._lock = Lock()
        self._jobs: PriorityQueue[_Job] = PriorityQueue()
        self._end: weakref.finalize[[PriorityQueue[_Job], int], Team] | None = None

    def turn(self) -> "Turn":
        """A place behind all that were taken before."""
        return Turn(self, next(self._turns))

    def submit(self, turn: float, call: Callable[[], T]) -> "Future[T]":
        """Have it called before everything of later turns."""
        with self._lock:
            if self._end is None:
                self._end = self._gather()
        future: Future[T] = Future()
        self._jobs.put((turn, next(self._tickets), future, call))
        return future

    def _gather(self) -> "weakref.finalize[[PriorityQueue[_Job], int], Team]":
        for number in range(self.threads):
            Thread(target=_work, args=(self._jobs,), name=f"team-{number}", daemon=True).start()
        return weakref.finalize(self, _send_away, self._jobs, self.threads)

    def begin_again(self) -> None:
        """For a process that was just forked: locks may be held there by threads that it does not have."""
        if self._end is not None:
            self._end.detach()
        self._begin()


_teams: "weakref.WeakSet[Team]" = weakref.WeakSet()


def _begin_again() -> None:
    for team in _teams:
        team.begin_again()


os.register_at_fork(after_in_child=_begin_again)


@dataclass(frozen=True)
class Turn:
    """The place of one block in the work of a team."""

    team: Team
    number: float

    @property
    def ahead(self) -> "Turn":
        """A place before all blocks: for a moment's work that others wait for."""
        return Turn(self.team, _FIRST)

    @property
    def threads(self) -> int:
        """That work for it if nobody is before it."""
        return self.team.threads

    def map(self, function: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
        """What `map` gives, computed by the team. Not to be called by what the team computes.

        Nothing of it runs any more when it returns or raises; after an error what has not begun is left out.
        """
        rows = list(zip(*arguments, strict=True))
        if self.threads == 1 or len(rows) == 1:
            return [function(*row) for row in rows]
        return results_of([self.team.submit(self.number, partial(function, *row)) for row in rows])


ALONE = Team().turn()
"""No team: whoever asks does the work."""


def _work(jobs: "PriorityQueue[_Job]") -> None:
    while True:
        _, _, future, call = jobs.get()
        if future is None:
            return
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except BaseException as error:  # whoever waits is told
                future.set_exception(error)
        del future, call  # nothing is kept while there is nothing to do


def _send_away(jobs: "PriorityQueue[_Job]", threads: int) -> None:
    for number in range(threads):
        jobs.put((_LAST, number, None, _nothing))


def _nothing() -> None:
    pass
