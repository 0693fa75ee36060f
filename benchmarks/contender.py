"""A contender: a process that makes cycles when told to, timed and watched from outside.

    python -m benchmarks.contender squall FOLDER

It reads `[number, path]` lines and answers each with the seconds and facts of that cycle. Only what a contender needs
is imported, so that a cold start costs each what it really costs.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 0.2


class Contender:
    """A contender's process, from outside; leaving the context ends it and all its children."""

    def __init__(self, name: str, folder: Path, log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._born = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.contender", name, str(folder)]
        self._log = log.open("w")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=None if environment is None else os.environ | environment,
        )
        self.name, self._log_path = name, log
        self.memory = Memory(self._process.pid)

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        tree = self.memory.tree()
        try:
            with contextlib.suppress(BrokenPipeError):
                assert self._process.stdin is not None
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=30 if kind is None else 0.5)  # in the middle of a lap it would not listen
        finally:
            for process in tree:
                with contextlib.suppress(Exception):
                    process.kill()
            self._process.wait()
            self._log.close()

    def lap(self, number: int, path: Path) -> dict[str, Any]:
        """Facts of one cycle, and its `seconds`; the first lap adds `cold`, the seconds since the process began."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self.memory:
            self._process.stdin.write(json.dumps([number, str(path)]) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} ended:\n{self._log_path.read_text()[-3000:]}")
        facts: dict[str, Any] = json.loads(answer)
        return facts | {"cold": time.perf_counter() - self._born, "path": facts.get("path", str(path))}


class Memory:
    """Peak memory of a process and all below it, bytes; sampled inside the context."""

    def __init__(self, pid: int) -> None:
        import psutil

        self._root = psutil.Process(pid)
        self.tree_bytes = self.worst_bytes = 0

    def __enter__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.worst_bytes = max([self.worst_bytes, *(_high_water(p.pid) for p in self.tree())])

    def tree(self) -> list[Any]:
        import psutil

        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.tree_bytes = max(self.tree_bytes, _together([p.pid for p in self.tree()]))


def _together(pids: list[int]) -> int:
    """Private bytes of all, and the largest shared part once."""
    private, shared = 0, 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):
            _, resident, common, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
            private, shared = private + resident - common, max(shared, common)
    return (private + shared) * os.sysconf("SC_PAGE_SIZE")


def _high_water(pid: int) -> int:
    """The most that one process has held since it began, shared memory included, bytes."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return 0


def _start(name: str, folder: Path) -> Callable[[int, Path], Callable[[], dict[str, Any] | None]]:
    if name in ("squall", "bare", "traced", "backfill"):
        from benchmarks import ours

        starts = {"squall": ours.squall, "bare": ours.bare, "traced": ours.traced, "backfill": ours.backfill}
        return starts[name](folder)
    if name.startswith("engine_"):
        from benchmarks.rivals import RIVALS

        lap = RIVALS[name](folder)
        return lambda number, path: partial(lap, number, path)
    from benchmarks.peers import PEERS, Task

    run = PEERS[name](Task.load(folder / "task.json"))
    return lambda number, path: partial(run, number, path)


def main(name: str, folder: Path) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes to the log
    start = _start(name, folder)
    for line in sys.stdin:
        number, path = json.loads(line)
        work = start(number, Path(path))
        begin = time.perf_counter()
        facts = work() or {}
        print(json.dumps(facts | {"seconds": time.perf_counter() - begin}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
