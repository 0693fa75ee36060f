"""When what was done, on which thread: the stages of a block as spans on a clock that all processes of a host share."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import current_thread
from time import monotonic

_COUNTED_AS = {"read": "read", "infer": "infer", "pack": "write", "write": "write"}  # decode is inside infer


@dataclass(frozen=True)
class Span:
    """One stretch of work.

    Attributes:
        start, end: seconds on CLOCK_MONOTONIC, comparable between the processes of one host.
        thread: name of the thread, unique in its process.
    """

    stage: str
    start: float
    end: float
    thread: str

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Seconds:
    """Time spent in the stages of a block, seconds."""

    read: float = 0.0
    infer: float = 0.0
    write: float = 0.0

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.read + other.read, self.infer + other.infer, self.write + other.write)


def add_up(spans: Iterable[Span]) -> Seconds:
    """What the stages took together; a stage inside another one (decode, in infer) is not counted again."""
    spent = {"read": 0.0, "infer": 0.0, "write": 0.0}
    for span in spans:
        if span.stage in _COUNTED_AS:
            spent[_COUNTED_AS[span.stage]] += span.seconds
    return Seconds(**spent)


class Stopwatch:
    """Records named stages as spans, `with watch("read"): ...`, from any number of threads."""

    def __init__(self) -> None:
        self._spans: list[Span] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = monotonic()
        try:
            yield
        finally:
            self._spans.append(Span(stage, start, monotonic(), current_thread().name))

    @property
    def spans(self) -> tuple[Span, ...]:
        """Everything recorded so far, the first to begin first; of two that begin together the longer one."""
        return tuple(sorted(self._spans, key=lambda span: (span.start, -span.end)))

    def seconds(self) -> Seconds:
        return add_up(self._spans)
