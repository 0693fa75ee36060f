"""Doing the same to many things at once."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def map_on(threads: int, function: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
    """What `map` gives, computed by so many threads; by the caller's own if it is one, whose memory is warm."""
    if threads == 1:
        return list(map(function, *arguments))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, *arguments))
