"""Who works on which block: events in, decisions out. No Ray, no clock; times come with the events.

    stream ──pulled──▶ queue ──assign──▶ in flight ──finished──▶ done
                         ▲                  │  │
                         └──lost, failed────┘  └──second loss or failure──▶ given up

A worker makes one or more blocks at once and holds one more, so that it never waits for the driver; at the tail none
waits behind others while a worker is idle. A block that takes far longer than the others is copied to an idle worker;
the first result counts. When a worker dies, each block that it was making may be the reason: such a suspect is made
alone on its worker the next time, so that only the guilty one is given up.

What is called a block here is any numbered piece of work; a backfill sends groups of cycles. Blocks are pulled from
their stream as workers have room, and what is settled is kept as a watermark: the state grows with the number of
workers, not with the length of the stream.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from statistics import median

AHEAD = 1  # blocks that wait in a worker
ATTEMPTS = 2
STRAGGLER_FACTOR = 3.0
STRAGGLER_SECONDS = 5.0
REMEMBERED = 64  # durations that say how long a block usually takes


@dataclass(frozen=True)
class Assign:
    """Send this block to this worker."""

    worker: str
    block: int


@dataclass(frozen=True)
class GiveUp:
    """This block will not be done; the reason names what happened to it."""

    block: int
    reason: str


Decision = Assign | GiveUp


@dataclass
class _Flight:
    block: int
    since: float


class Numbers:
    """A set of natural numbers that are added roughly in order: all below a watermark, and the few above it.

    >>> settled = Numbers()
    >>> for n in (1, 0, 3): settled.add(n)
    >>> len(settled), 1 in settled, 2 in settled, settled.above
    (3, True, False, {3})
    """

    def __init__(self) -> None:
        self.watermark = 0
        self.above: set[int] = set()

    def add(self, number: int) -> None:
        if number >= self.watermark:
            self.above.add(number)
        while self.watermark in self.above:
            self.above.remove(self.watermark)
            self.watermark += 1

    def __contains__(self, number: int) -> bool:
        return number < self.watermark or number in self.above

    def __len__(self) -> int:
        return self.watermark + len(self.above)


@dataclass
class Dispatcher:
    """The state of a stream of blocks, numbered about in order; it may be long.

    Every method takes the time `now` (seconds, any clock that only rises) and returns what to do next.

    Args:
        at_once: blocks that a worker makes at the same time.
    """

    blocks: Iterable[int]
    at_once: int = 1
    settled: Numbers = field(init=False, default_factory=Numbers)
    _stream: Iterator[int] = field(init=False)
    _queue: deque[int] = field(init=False, default_factory=deque)
    _flights: dict[str, list[_Flight]] = field(init=False, default_factory=dict)
    _mishaps: dict[int, list[str]] = field(init=False, default_factory=dict)
    _suspects: set[int] = field(init=False, default_factory=set)
    _durations: deque[float] = field(init=False, default_factory=lambda: deque(maxlen=REMEMBERED))

    def __post_init__(self) -> None:
        self._stream = iter(self.blocks)
        self._pull(1)

    @property
    def is_settled(self) -> bool:
        """True if every block is done or given up."""
        flying = (flight.block for flights in self._flights.values() for flight in flights)
        return not self._queue and all(block in self.settled for block in flying)

    def joined(self, workers: Iterable[str], now: float) -> list[Decision]:
        """Workers are ready."""
        for worker in workers:
            self._flights.setdefault(worker, [])
        return self._assign(now)

    def finished(self, worker: str, block: int, now: float) -> list[Decision]:
        """A worker has done a block; a second result of the same block changes nothing."""
        flight = self._land(worker, block)
        if flight is not None and block not in self.settled:
            self._durations.append(now - flight.since)
        self._settle(block)
        for waiting in self._flights.get(worker, [])[self.at_once - 1 : self.at_once]:
            waiting.since = now  # it starts to run only now
        return self._assign(now)

    def failed(self, worker: str, block: int, reason: str, now: float) -> list[Decision]:
        """A worker survived a block that it could not do."""
        self._land(worker, block)
        return self._mishap(block, f"{reason} (on {worker})") + self._assign(now)

    def lost(self, worker: str, now: float) -> list[Decision]:
        """A worker died. What it was making is blamed, what waited behind goes back unblamed."""
        flights = self._flights.pop(worker, [])
        for flight in reversed(flights[self.at_once :]):
            self._requeue(flight.block)
        blamed = [flight.block for flight in flights[: self.at_once]]
        self._suspects |= set(blamed) if len(blamed) > 1 else set()
        decisions = [d for block in reversed(blamed) for d in self._mishap(block, f"worker {worker} died")]
        return decisions + self._assign(now)

    def tick(self, now: float) -> list[Decision]:
        """Time has passed; stragglers may be copied."""
        return self._assign(now)

    def stop(self, reason: str) -> list[Decision]:
        """No more work: every block that is not done is given up, those of the stream that were not pulled too."""
        flying = {f.block for flights in self._flights.values() for f in flights}
        blocks = [*sorted(flying.union(self._queue)), *self._stream]
        self._queue.clear()
        return [decision for block in blocks for decision in self._give_up(block, reason)]

    def _pull(self, wanted: int) -> None:
        """Pulls blocks until so many that are no suspects are in the queue."""
        missing = wanted - sum(block not in self._suspects for block in self._queue)
        self._queue.extend(islice(self._stream, max(0, missing)))

    def _assign(self, now: float) -> list[Decision]:
        decisions: list[Decision] = []
        for depth in range(self.at_once + AHEAD):
            for worker, flights in self._flights.items():
                if len(flights) != depth:
                    continue
                self._pull(len(self._flights) + 1)
                if depth < self.at_once or len(self._queue) > len(self._flights):
                    block = self._next(flights)
                    decisions += [] if block is None else [self._send(worker, block, now)]
        self._pull(1)  # so that an empty queue means that the stream has ended
        return decisions + self._copy_stragglers(now)

    def _next(self, flights: list[_Flight]) -> int | None:
        """Takes the next block from the queue for a worker with these in flight; a suspect is made alone."""
        if any(flight.block in self._suspects for flight in flights):
            return None
        found = next((block for block in self._queue if not flights or block not in self._suspects), None)
        if found is not None:
            self._queue.remove(found)
        return found

    def _copy_stragglers(self, now: float) -> list[Decision]:
        idle = [worker for worker, flights in self._flights.items() if not flights]
        slow = self._stragglers(now) if idle and not self._queue else []
        return [self._send(worker, block, now) for worker, block in zip(idle, slow, strict=False)]

    def _stragglers(self, now: float) -> list[int]:
        """Blocks with one copy in flight, out for far longer than a block usually takes; the oldest first."""
        if not self._durations:
            return []
        limit = max(STRAGGLER_SECONDS, STRAGGLER_FACTOR * median(self._durations))
        flights = sorted((f for fs in self._flights.values() for f in fs), key=lambda f: f.since)
        copies = [f.block for f in flights]
        late = [f.block for f in flights if now - f.since > limit and copies.count(f.block) == 1]
        return [block for block in late if block not in self.settled]

    def _send(self, worker: str, block: int, now: float) -> Assign:
        self._flights[worker].append(_Flight(block, now))
        return Assign(worker, block)

    def _land(self, worker: str, block: int) -> _Flight | None:
        flights = self._flights.get(worker, [])
        found = next((f for f in flights if f.block == block), None)
        if found is not None:
            flights.remove(found)
        return found

    def _mishap(self, block: int, what: str) -> list[Decision]:
        if block in self.settled:
            return []
        self._mishaps.setdefault(block, []).append(what)
        if len(self._mishaps[block]) >= ATTEMPTS:
            return self._give_up(block, "; ".join(self._mishaps[block]))
        self._requeue(block)
        return []

    def _requeue(self, block: int) -> None:
        flying = any(f.block == block for flights in self._flights.values() for f in flights)
        if block not in self.settled and block not in self._queue and not flying:
            self._queue.appendleft(block)

    def _give_up(self, block: int, reason: str) -> list[Decision]:
        if block in self.settled:
            return []
        self._settle(block)
        return [GiveUp(block, reason)]

    def _settle(self, block: int) -> None:
        self.settled.add(block)
        self._mishaps.pop(block, None)
        self._suspects.discard(block)
