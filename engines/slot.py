"""The active and the standby engine of one worker: one works while the other is made ready; they change places.

What the standby is; `prepare` starts from anywhere but LOADING, a failure or `discard` ends at EMPTY:

```
EMPTY --prepare--> LOADING --> READY --swap--> PREVIOUS
                                 ^---- undo -----'
```
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.base import Engine, EngineError, InferenceError, Lane
from engines.spec import Shape, TensorSpec

Check = Callable[[Engine], str | None]
"""What is wrong with the results of an engine; None = nothing."""


class SlotError(EngineError):
    """The slot stays as it is: the standby is not ready, does not fit, or is refused by its check."""


@dataclass(frozen=True)
class Candidate:
    """An engine that is not loaded yet.

    Attributes:
        version: which outputs are attributed to; no two engines of a slot have the same.
        memory_bytes: that it takes once loaded.
        load: gives the engine; may take seconds.
        shares_memory: with the active engine, so that the two must never run at once. Not needed for engines in one
            `engines.trt.Memory`: its compute stream sees to that.
    """

    version: str
    memory_bytes: int
    load: Callable[[], Engine]
    shares_memory: bool = False


@dataclass(frozen=True)
class Result:
    """The output (n, lead, h, w) of a batch, and the version of the one engine that made it."""

    version: str
    values: NDArray[np.float32]


@dataclass(frozen=True)
class SlotLane:
    """A lane of the engine that was active when it was taken, with its version."""

    version: str
    inner: Lane

    @property
    def given(self) -> NDArray[Any]:
        return self.inner.given

    def run(self) -> NDArray[Any]:
        return self.inner.run()


class Standby(StrEnum):
    """What the standby is: nothing, on its way, ready to be active, or active before."""

    EMPTY = "empty"
    LOADING = "loading"
    READY = "ready"
    PREVIOUS = "previous"


@dataclass(frozen=True)
class State:
    """Which version is active and which is where; the rules by which they change.

    >>> str(State("1").loading("2").loaded().swapped())
    'active 2, standby 1 (previous)'
    """

    active: str
    version: str | None = None
    standby: Standby = Standby.EMPTY

    def loading(self, version: str) -> "State":
        """A standby is on its way; the one before is gone."""
        if self.standby is Standby.LOADING:
            raise SlotError(f"version {self.version} is still loading; {version} must wait")
        if version == self.active:
            raise SlotError(f"version {version} is active already; a standby needs another name")
        return replace(self, version=version, standby=Standby.LOADING)

    def loaded(self) -> "State":
        """The standby is loaded, warm and checked."""
        return replace(self, standby=self._expect(Standby.LOADING, "finish", Standby.READY))

    def emptied(self) -> "State":
        """The standby is gone."""
        return State(self.active)

    def swapped(self) -> "State":
        """The standby is active, and the one before it can come back."""
        role = self._expect(Standby.READY, "swap to", Standby.PREVIOUS)
        return State(self.version or "", self.active, role)

    def undone(self) -> "State":
        """The former version is active again."""
        role = self._expect(Standby.PREVIOUS, "go back to", Standby.READY)
        return State(self.version or "", self.active, role)

    def _expect(self, needed: Standby, verb: str, then: Standby) -> Standby:
        if self.standby is not needed:
            raise SlotError(f"nothing to {verb}: {self}; expected a standby that is {needed}")
        return then

    def __str__(self) -> str:
        return f"active {self.active}, " + (
            f"standby {self.version} ({self.standby})" if self.version else "no standby"
        )


@dataclass(frozen=True)
class _Loaded:
    candidate: Candidate
    engine: Engine


class Slot:
    """An `Engine` that can be exchanged while it works; safe to use from several threads.

    A batch runs from start to end in one engine. A swap waits for the batches in flight and holds back new ones; so
    before it every result is of the former version, after it of the new one, and none fails. A lane counts as a batch
    in flight from when it is taken until it is given back.

    Args:
        first: loaded at once and not checked.
        fits: True if so many more bytes of memory can be had; asked before an engine is loaded, never after.

    Raises:
        SlotError: the first engine does not fit. What its `load` raises.
    """

    def __init__(self, first: Candidate, fits: Callable[[int], bool] = lambda size: True) -> None:
        self._fits, self._turn = fits, threading.Condition()
        self._running, self._is_paused, self._is_closed = 0, False, False
        self._refuse_unfit(first, first.memory_bytes)
        self._active = _Loaded(first, first.load())
        self._standby: _Loaded | None = None
        self._state = State(first.version)

    @property
    def state(self) -> State:
        return self._state

    @property
    def version(self) -> str:
        """Of the active engine."""
        return self._state.active

    @property
    def specs(self) -> tuple[TensorSpec, TensorSpec]:
        return self._active.engine.specs

    def infer(self, batch: NDArray[np.float32]) -> Result:
        """The output of a batch (n, channel, h, w) and the version that made it; waits while a swap is under way.

        Raises:
            InferenceError: the active engine failed, or the slot is closed.
        """
        with self._batch() as active:
            return Result(active.candidate.version, active.engine(batch))

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.infer(batch).values

    @contextmanager
    def lane(self, shape: Shape) -> Iterator[SlotLane]:
        """A lane of the active engine; waits while a swap is under way, and no swap happens until it is given back."""
        with self._batch() as active, active.engine.lane(shape) as inner:
            yield SlotLane(active.candidate.version, inner)

    def warm(self, shape: Shape) -> None:
        with self._batch() as active:
            active.engine.warm(shape)

    def prepare(self, candidate: Candidate, shape: Shape, check: Check = lambda engine: None) -> None:
        """Loads, warms and checks a standby while the active engine works; takes the place of the standby before.

        Args:
            shape: (n, channel, h, w) of the batches to come.
            check: is given the standby to run it; one that shares memory runs between batches of the active one.

        Raises:
            SlotError: another is loading, the version is active, memory is short (the standby before stays), the
                tensors do not fit, or `check` refuses. What `load` raises. The active engine works on after any error.
        """
        former = self._make_room(candidate)
        try:
            if former is not None:
                former.engine.close()
            loaded = self._load(candidate, shape, check)
        except BaseException:
            self._settle(None)
            raise
        self._settle(loaded)

    def swap(self, timeout_seconds: float | None = None) -> str:
        """Makes the standby the active engine, between two batches; returns its version.

        Raises:
            SlotError: no standby is ready, or a batch took longer than the timeout; nothing has changed.
        """
        return self._exchange(State.swapped, timeout_seconds)

    def undo(self, timeout_seconds: float | None = None) -> str:
        """Makes the engine from before the last swap active again, between two batches; returns its version.

        Raises:
            SlotError: it is not there any more, or a batch took longer than the timeout; nothing has changed.
        """
        return self._exchange(State.undone, timeout_seconds)

    def discard(self) -> None:
        """Releases the standby and its memory, if there is one.

        Raises:
            SlotError: it is still loading.
        """
        with self._turn:
            if self._state.standby is Standby.LOADING:
                raise SlotError(f"version {self._state.version} is still loading; it cannot be discarded")
            former, self._standby, self._state = self._standby, None, self._state.emptied()
        if former is not None:
            former.engine.close()

    def close(self) -> None:
        """Releases both engines after the batches in flight; one that is still loading, as soon as it is loaded."""
        with self._between_batches():
            former = [] if self._is_closed else [self._active]
            former += [self._standby] if self._standby is not None else []
            self._is_closed, self._standby = True, None
        for loaded in former:
            loaded.engine.close()

    @contextmanager
    def _batch(self) -> Iterator[_Loaded]:
        with self._turn:
            self._turn.wait_for(lambda: not self._is_paused)
            if self._is_closed:
                raise InferenceError(f"the slot of version {self.version} is closed")
            self._running += 1
            active = self._active
        try:
            yield active
        finally:
            with self._turn:
                self._running -= 1
                self._turn.notify_all()

    @contextmanager
    def _between_batches(self, timeout_seconds: float | None = None) -> Iterator[None]:
        """Alone with the engines: none in flight, none starts."""
        with self._turn:
            if not self._turn.wait_for(lambda: not self._is_paused, timeout_seconds):
                raise SlotError(f"another change did not end within {timeout_seconds:g} s; {self._state}")
            self._is_paused = True
            try:
                if not self._turn.wait_for(lambda: self._running == 0, timeout_seconds):
                    raise SlotError(f"a batch did not end within {timeout_seconds:g} s; still {self._state}")
                yield
            finally:
                self._is_paused = False
                self._turn.notify_all()

    def _exchange(self, change: Callable[[State], State], timeout_seconds: float | None) -> str:
        change(self._state)  # what cannot be need not stop the batches
        with self._between_batches(timeout_seconds):
            state = change(self._state)
            if self._is_closed or self._standby is None:
                raise SlotError(f"the slot is closed; {self._state}")
            self._active, self._standby, self._state = self._standby, self._active, state
        return state.active

    def _make_room(self, candidate: Candidate) -> _Loaded | None:
        """Takes the standby out, to be closed, if the candidate fits in its place."""
        with self._turn:
            if self._is_closed:
                raise SlotError(f"the slot of version {self.version} is closed")
            state = self._state.loading(candidate.version)
            freed = 0 if self._standby is None else self._standby.candidate.memory_bytes
            self._refuse_unfit(candidate, max(0, candidate.memory_bytes - freed))
            former, self._standby, self._state = self._standby, None, state
        return former

    def _settle(self, loaded: _Loaded | None) -> None:
        """Ends the loading, well or not."""
        with self._turn:
            if loaded is None or not self._is_closed:
                self._standby = loaded
                self._state = self._state.emptied() if loaded is None else self._state.loaded()
                return
        loaded.engine.close()
        raise SlotError(f"the slot was closed while version {loaded.candidate.version} was loading")

    def _load(self, candidate: Candidate, shape: Shape, check: Check) -> _Loaded:
        engine = candidate.load()
        try:
            self._refuse_misfit(candidate.version, engine, shape)
            trial = _Polite(engine, self._between_batches) if candidate.shares_memory else engine
            trial.warm(shape)
            fault = check(trial)
            if fault is not None:
                raise SlotError(
                    f"version {candidate.version} is refused by its check: {fault}; {self._state.active} stays"
                )
        except BaseException:
            engine.close()
            raise
        return _Loaded(candidate, engine)

    def _refuse_unfit(self, candidate: Candidate, more_bytes: int) -> None:
        if not self._fits(more_bytes):
            raise SlotError(
                f"version {candidate.version} needs {candidate.memory_bytes:,} bytes, {more_bytes:,} more than are in "
                "use, which cannot be had; nothing was loaded"
            )

    def _refuse_misfit(self, version: str, engine: Engine, shape: Shape) -> None:
        ours, theirs = self.specs, engine.specs
        if not all(map(_is_alike, ours, theirs)) or not theirs[0].accepts(shape):
            raise SlotError(
                f"version {version} turns {theirs[0]} into {theirs[1]}; expected {ours[0]} into {ours[1]}, as version "
                f"{self.version} does, and to take batches of {shape}"
            )


def _is_alike(ours: TensorSpec, theirs: TensorSpec) -> bool:
    """True if callers see the same type and planes; sizes of tiles may differ, and half may be cast at the border."""
    (a,), (b,) = ours.shape[1:2], theirs.shape[1:2]
    return ours.call_dtype == theirs.call_dtype and (a == b or None in (a, b))


class _Polite:
    """An engine that runs only between the batches of another."""

    def __init__(self, engine: Engine, alone: Callable[[], AbstractContextManager[None]]) -> None:
        self._engine, self._alone = engine, alone

    @property
    def specs(self) -> tuple[TensorSpec, TensorSpec]:
        return self._engine.specs

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with self._alone():
            return self._engine(batch)

    @contextmanager
    def lane(self, shape: Shape) -> Iterator[Lane]:
        with self._alone(), self._engine.lane(shape) as inner:
            yield inner

    def warm(self, shape: Shape) -> None:
        with self._alone():
            self._engine.warm(shape)

    def close(self) -> None:
        self._engine.close()
