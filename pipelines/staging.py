"""Folders of work in progress: `<product>/.staging/<label>~<host>~<boot>~<pid>~<start>~<random>`.

The name says which process owns a folder, so that another can tell a dead run from a living one.
"""

import os
import re
import secrets
import shutil
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil

from pipelines.cycles import product_folder

FOREIGN_AGE = timedelta(days=1)  # after which an untouched folder of another host counts as left behind
_STAGING = ".staging"


@dataclass(frozen=True)
class Owner:
    """A process, told apart from later ones with the same number; `boot` includes the container."""

    host: str
    boot: str
    pid: int
    start: str

    def is_gone(self, here: "Owner") -> bool | None:
        """True if the process has ended, False if it runs, None if that cannot be seen from `here`."""
        if self.host != here.host:
            return None
        if self.boot != here.boot:
            return True if self.boot.partition("-")[0] != here.boot.partition("-")[0] else None
        return _start_of(self.pid) != self.start


def this_process() -> Owner:
    """The owner that folders made by this process are named after."""
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()) or "localhost"
    return Owner(host, _boot(), os.getpid(), _start_of(os.getpid()) or "0")


def make_staging(root: str, product: str, label: str) -> Path:
    """A new folder that only this process uses, on the file system of the product."""
    me = this_process()
    folder = product_folder(root, product) / _STAGING
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "~".join([label, me.host, me.boot, str(me.pid), me.start, secrets.token_hex(4)])
    path.mkdir()
    return path


def discard(root: str, product: str, path: Path) -> bool:
    """Removes a folder of the product: it leaves its place whole, in one step, and is deleted afterwards.

    So no reader opens half a cycle, and a writer whose draft is swept by mistake fails to publish what is left
    of it. False if the folder was gone.
    """
    away = make_staging(root, product, "discarded")
    try:
        os.rename(path, away / path.name)
    except FileNotFoundError:
        return False
    finally:
        shutil.rmtree(away)
    return True


def abandoned(root: str, product: str) -> list[Path]:
    """Staging folders whose process has ended; of other hosts, those that nothing has touched for a day."""
    here = this_process()
    folder = product_folder(root, product) / _STAGING
    return [p for p in sorted(folder.glob("*~*")) if _is_abandoned(p, here)]


def has_drafts(root: str, product: str) -> bool:
    """True if any process has a folder of work in progress, or has left one."""
    return any((product_folder(root, product) / _STAGING).glob("*~*"))


def _is_abandoned(path: Path, here: Owner) -> bool:
    parts = path.name.split("~")
    if len(parts) != 6 or not parts[3].isdigit():
        return False
    gone = Owner(parts[1], parts[2], int(parts[3]), parts[4]).is_gone(here)
    return _seconds_untouched(path) > FOREIGN_AGE.total_seconds() if gone is None else gone


def _seconds_untouched(path: Path) -> float:
    folders = [path, *(Path(top) for top, _, _ in os.walk(path))]
    times = [p.stat().st_mtime for p in folders if p.exists()]
    return time.time() - max(times, default=time.time())


def _boot() -> str:
    """This boot of this machine, and the process namespace in it: process numbers mean nothing outside."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return "0-0"


def _start_of(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return "0" if not Path("/proc/self").exists() and psutil.pid_exists(pid) else None
    except ProcessLookupError:
        return None
    return None if fields[0] == "Z" else fields[19]
