"""A process that publishes and may die: `publish_worker.py <request as JSON> <moment> <step>`."""

import json
import os
import signal
import sys
from pathlib import Path

from engines.precision import Precision
from jobs.publish import Request, publish
from jobs.setting import Purpose
from jobs.watch import Watcher


def request(tree: dict) -> Request:
    """The request of a test, always on tiny tiles."""
    precisions = tuple(map(Precision, tree["precisions"]))
    return Request(
        Path(tree["model"]), None, "rain", precisions, Purpose((1, 32, 32)), Path(tree["registry"]), "production", "me"
    )


def watcher(moment: str, step: str) -> Watcher:
    """Kills this process when a step begins, first says something, or has ended."""
    current = []

    def die(when: str, name: str) -> None:
        if (when, name) == (moment, step):
            os.kill(os.getpid(), signal.SIGKILL)

    def begins(name: str) -> None:
        current[:] = [name]
        die("begins", name)

    return Watcher(begins, lambda text: die("says", current[0]), lambda report: die("ended", report.name))


if __name__ == "__main__":
    publish(request(json.loads(sys.argv[1])), watcher(*sys.argv[2:4]))
