"""The Ray of this machine, seen as a process: once its raylet has ended, calls of Ray may end ours without a word."""

from contextlib import suppress
from dataclasses import dataclass

import psutil
import ray


class RayGoneError(Exception):
    """Ray ended while it was needed."""


@dataclass(frozen=True)
class Raylet:
    """The raylet that this process talks to; one that cannot be seen (None) counts as there."""

    process: psutil.Process | None

    @property
    def is_gone(self) -> bool:
        """True if it has ended."""
        if self.process is None:
            return False
        with suppress(psutil.NoSuchProcess):
            return not self.process.is_running() or bool(self.process.status() == psutil.STATUS_ZOMBIE)
        return True

    def check(self) -> None:
        """Raises RayGoneError if it has ended."""
        if self.process is not None and self.is_gone:
            raise RayGoneError(f"Ray has ended: its raylet, process {self.process.pid}, was killed or failed")


def find_raylet() -> Raylet:
    """The raylet of the Ray that we have joined."""
    node = ray.get_runtime_context().get_node_id()
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.Error):
            if process.info["name"] == "raylet" and f"--node_id={node}" in process.cmdline():
                return Raylet(process)
    return Raylet(None)
