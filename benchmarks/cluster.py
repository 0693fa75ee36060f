"""A Ray cluster of its own on loopback, as it stands on a machine where cron starts runs."""

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from engines.cores import usable_cores

START_SECONDS, GONE_SECONDS = 60, 10
OBJECT_STORE_BYTES = 10**9
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


@contextmanager
def open_cluster(log: Path, environment: Mapping[str, str] | None = None) -> Iterator[dict[str, str]]:
    """The environment of commands that use a new head node; the node and all its processes end with the context.

    Args:
        environment: more of the node and of those commands.

    Raises:
        RuntimeError: the node does not come up; ends with what it said last.
    """
    port = free_port()
    shown = shared_environment(port) | dict(environment or {})
    with tempfile.TemporaryDirectory(prefix="sq", dir="/tmp", ignore_cleanup_errors=True) as folder:
        with log.open("w") as out:
            head = subprocess.Popen(
                _command(port, folder),
                stdout=out,
                stderr=out,
                env=without_address(shown),
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        try:
            _wait(head, Path(folder), log)
            yield shown
        finally:
            _end(head)


def shared_environment(port: int) -> dict[str, str]:
    """What node and commands agree on: a token, and loopback alone; the variables of another Ray are left out."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    alone = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # docs/operations.md
    return others | token | alone | {"RAY_ADDRESS": f"127.0.0.1:{port}"}


def without_address(environment: Mapping[str, str]) -> dict[str, str]:
    """For the head node itself, which would take the address for one to join."""
    return {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _command(port: int, folder: str) -> list[str]:
    return [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address=127.0.0.1",
        f"--port={port}", f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}",
        "--include-dashboard=false", f"--num-cpus={usable_cores()}", f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={folder}",
    ]  # fmt: skip


def _wait(head: subprocess.Popen[bytes], folder: Path, log: Path) -> None:
    """Until workers can be started."""
    give_up = time.monotonic() + START_SECONDS
    while not (folder / "session_latest/sockets/raylet").exists():
        code = head.poll()
        if code is not None or time.monotonic() > give_up:
            why = f"did not come up within {START_SECONDS} s" if code is None else f"ended with {code}"
            raise RuntimeError(f"the Ray node {why}: {log.read_text()[-2000:]}")
        time.sleep(0.1)


def _end_with_parent() -> None:
    """In the node: the kernel ends it if this process is killed; Ray's reaper then ends its processes."""
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _end(head: subprocess.Popen[bytes]) -> None:
    below: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(head.pid).children(recursive=True)
    for process in below:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    head.kill()
    head.wait()
    psutil.wait_procs(below, timeout=GONE_SECONDS)
