"""Workers that outlive a run: named detached actors, found by the next run of their product.

found ──take──▶ this squall, this place ─▶ used, with the setup of the run
          ├───▶ another run has it ──────▶ left alone
          └───▶ other squall or place, abandoned, silent, one too many ─▶ ended
"""

import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from jobs.holder import name_this_run
from jobs.outfit import Place
from jobs.version import code_version
from jobs.worker import Status, Worker

T = TypeVar("T")
Workers = Mapping[str, "ActorHandle[Worker]"]

NAMESPACE = "squall"
_ANSWER_SECONDS = 10.0
_BEAT_SECONDS = 1.0
_GLANCE_SECONDS = 1.0  # for the answer of a worker that is not needed; others may not have started yet
_PATIENCE_SECONDS = 5.0  # for a worker to start, before others have to make room


@dataclass(frozen=True)
class Keep:
    """Whose workers stay, how long after the last call, and which run wants them."""

    product: str
    seconds: float
    holder: str = field(default_factory=name_this_run)


class Fate(StrEnum):
    """What becomes of a worker that a run found."""

    USE = "use"
    LEAVE = "leave"
    END = "end"


def judge(status: Status | None, holder: str, place: Place, version: str) -> Fate:
    """The fate of a worker by what it said when it was to be taken; None = it did not answer."""
    if status is None or status.is_abandoned:
        return Fate.END
    if status.holder != holder:
        return Fate.LEAVE
    return Fate.USE if (status.version, status.place) == (version, place) else Fate.END


def find_kept(product: str | None = None) -> dict[str, "ActorHandle[Worker]"]:
    """Kept workers by name, of one product or of all."""
    named = re.compile(rf"{'.+' if product is None else re.escape(product)}-(\d+)")
    names = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True) if one["namespace"] == NAMESPACE]
    found = {}
    for name in sorted(filter(named.fullmatch, names), key=lambda name: int(name.rpartition("-")[2])):
        with suppress(ValueError):  # it has ended meanwhile
            found[name] = ray.get_actor(name, namespace=NAMESPACE)
    return found


def ask(workers: Workers, call: Callable[[Any], Any], seconds: float = _ANSWER_SECONDS) -> dict[str, Any]:
    """The answers of workers to a call, by name; those that fail or do not answer in time are not in it."""
    calls = {call(worker): name for name, worker in workers.items()}
    landed, _ = ray.wait(list(calls), num_returns=len(calls), timeout=seconds) if calls else ([], [])
    answers = {}
    for ref in landed:
        with suppress(RayError):
            answers[calls[ref]] = ray.get(ref)
    return {name: answers[name] for name in workers if name in answers}


def claim(keep: Keep, place: Place, count: int) -> dict[str, "ActorHandle[Worker]"]:
    """At most so many kept workers of a product that are now this run's; those that nobody can use are ended."""
    found = find_kept(keep.product)
    said = ask(found, lambda worker: worker.take.remote(keep.holder))
    fates = {name: judge(said.get(name), keep.holder, place, code_version()) for name in found}
    ours = [name for name, fate in fates.items() if fate is Fate.USE]
    for name in [name for name, fate in fates.items() if fate is Fate.END] + ours[count:]:
        ray.kill(found[name])
    return {name: found[name] for name in ours[:count]}


def make_room(place: Place, count: int) -> None:
    """Ends kept workers that no run uses, the longest idle first, until so many of a place fit into the cluster."""
    resource, each = place.scarce
    short = count * each - ray.available_resources().get(resource, 0)
    kept = find_kept() if short > 0 else {}
    said = ask(kept, lambda worker: worker.status.remote(), _GLANCE_SECONDS)
    for name in sorted(said, key=lambda name: -said[name].idle_seconds):
        what, freed = said[name].place.scarce
        if short > 0 and what == resource and (not said[name].holder or said[name].is_abandoned):
            ray.kill(kept[name])
            short -= freed


class Beat:
    """Asks workers how they are, once a second from a thread: this keeps them, and brings what they say.

    Args:
        workers: that there are now.
        holder: the run that they belong to.
        tell: called with the news of those that open an engine, when it changes.
        make_room: called with the number of workers that do not come up.
    """

    def __init__(
        self,
        workers: Callable[[], Workers],
        holder: str,
        tell: Callable[[str], None],
        make_room: Callable[[int], None],
    ) -> None:
        self._workers, self._holder, self._tell, self._make_room = workers, holder, tell, make_room
        self._asked: dict[str, Any] = {}
        self._unheard: dict[str, float] = {}
        self._heard: set[str] = set()
        self._news: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        told = ""
        while not self._stop.is_set():
            with suppress(RayError):
                self._ask()
                self._ask_for_room()
            text = news_of(self._news)
            if text != told:
                self._tell(text)
                told = text
            self._stop.wait(_BEAT_SECONDS)

    def _ask(self) -> None:
        workers = self._workers()
        self._news = {name: text for name, text in self._news.items() if name in workers}
        self._asked = {name: ref for name, ref in self._asked.items() if name in workers}
        for name in workers.keys() - self._asked.keys():
            self._asked[name] = workers[name].status.remote(self._holder)
            self._unheard.setdefault(name, monotonic())
        landed, _ = ray.wait(list(self._asked.values()), num_returns=len(self._asked), timeout=_BEAT_SECONDS / 2)
        for name in [name for name, ref in self._asked.items() if ref in landed]:
            with suppress(RayError):
                self._news[name] = ray.get(self._asked.pop(name)).news
                self._heard.add(name)

    def _ask_for_room(self) -> None:
        """Workers that have never answered have not found a place, if that goes on for long."""
        now, waiting = monotonic(), self._workers().keys() - self._heard
        late = [name for name in waiting if now - self._unheard.get(name, now) > _PATIENCE_SECONDS]
        if late:
            self._unheard |= dict.fromkeys(late, now)
            self._make_room(len(late))


def news_of(news: Mapping[str, str]) -> str:
    """One line of what workers say; all that say nothing have open engines.

    >>> news_of({"rain-0": "building, 40 %", "rain-1": "", "rain-2": "waiting for process 7"})
    'rain-0: building, 40 %, and 1 more'
    """
    said = [f"{name}: {text}" for name, text in news.items() if text]
    return (said[0] + (f", and {len(said) - 1} more" if said[1:] else "")) if said else ""
