"""Doing the same to many things at once, on threads that stay: a fresh one allocates from memory of its own."""

import os
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


class _Helpers(threading.local):
    """Pools of the thread that asks, by their size: calls of several threads do not wait for each other's."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._pools: dict[int, ThreadPoolExecutor] = {}

    def pool(self, threads: int) -> ThreadPoolExecutor:
        if threads not in self._pools:
            self._pools[threads] = ThreadPoolExecutor(threads, "helper")
        return self._pools[threads]


_HELPERS = _Helpers()
os.register_at_fork(after_in_child=_HELPERS.forget)  # threads do not come along


@cache
def staying(threads: int, name: str) -> ThreadPoolExecutor:
    """Threads of the whole process, the same at every call; a forked process has its own."""
    return ThreadPoolExecutor(threads, name)


os.register_at_fork(after_in_child=staying.cache_clear)


def map_on(threads: int, function: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
    """What `map` gives, computed by so many threads; by the caller's own if it is one.

    Nothing of it runs any more when it returns or raises; after an error what has not begun is left out.
    """
    rows = zip(*arguments, strict=True)
    if threads == 1:
        return [function(*row) for row in rows]
    pool = _HELPERS.pool(threads)
    return results_of([pool.submit(function, *row) for row in rows])


def results_of(futures: Sequence[Future[T]]) -> list[T]:
    """The results of all, or the error of one; then none runs any more, and what has not begun is cancelled."""
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
    finally:
        end(futures)
    error = next(filter(None, (future.exception() for future in futures if not future.cancelled())), None)
    if error is None:
        return [future.result() for future in futures]
    try:
        raise error
    finally:
        del futures, error  # the error refers to this frame: a circle would keep the arrays of all callers


def end(futures: Collection[Future[Any]]) -> None:
    """None of them runs any more afterwards; what has not begun is left out."""
    for future in futures:
        future.cancel()
    wait(futures)
