"""Who may use a worker that several runs can find: one at a time, and nobody for ever.

```
free --take--> held --release--> free        a holder that calls nothing for LAPSE_SECONDS is gone;
                 └─ holder is silent ─▶ lapsed    its blocks may still come, so nobody takes such a worker again
```
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

LAPSE_SECONDS = 30.0


class Lease:
    """The state of one worker's lease; for many threads.

    Args:
        holder: who has it first; "" = nobody.
        clock: seconds that only rise.
    """

    def __init__(self, holder: str = "", clock: Callable[[], float] = monotonic) -> None:
        self._lock, self._clock = threading.Lock(), clock
        self._holder, self._heard, self._running = holder, clock(), 0

    @property
    def holder(self) -> str:
        return self._holder

    @property
    def is_lapsed(self) -> bool:
        """True if the holder has not been heard of for long."""
        with self._lock:
            return bool(self._holder) and not self._running and self._silence() > LAPSE_SECONDS

    @property
    def idle_seconds(self) -> float:
        """Since the last call; 0 while a block is made."""
        with self._lock:
            return 0.0 if self._running else self._silence()

    def take(self, holder: str) -> bool:
        """True if the worker is this holder's now; a free one with a block on its way is not given."""
        with self._lock:
            if self._holder not in ("", holder) or (not self._holder and self._running):
                return False
            self._holder, self._heard = holder, self._clock()
            return True

    def hear(self, holder: str) -> None:
        """The holder is there."""
        with self._lock:
            if holder and holder == self._holder:
                self._heard = self._clock()

    def release(self, holder: str) -> None:
        """Free again, if it was this holder's."""
        with self._lock:
            if holder == self._holder:
                self._holder, self._heard = "", self._clock()

    @contextmanager
    def running(self) -> Iterator[None]:
        """While a block is made, the worker is not idle."""
        with self._lock:
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                self._heard = self._clock()

    def end_if_idle(self, seconds: float, end: Callable[[], None]) -> None:
        """Calls `end` if nothing called for so long; nobody can take the worker meanwhile."""
        with self._lock:
            if not self._running and self._silence() > seconds:
                end()

    def _silence(self) -> float:
        return self._clock() - self._heard
