"""Work in progress: `<product>/.staging/<label>~<host>~<boot>~<pid>~<start>~<random>`.

The name says which process owns it, so that another can tell a dead run from a living one.
"""

import hashlib
import os
import re
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil

_MACHINE = Path("/etc/machine-id")  # stays from boot to boot
FOREIGN_AGE = timedelta(days=1)  # after which untouched work of another host counts as left behind


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
    """The owner that work of this process is named after."""
    return Owner(_host(), _boot(), os.getpid(), _start_of(os.getpid()) or "0")


def new_work(label: str) -> str:
    """A name for work of this process, unlike any other."""
    me = this_process()
    return "~".join([label, me.host, me.boot, str(me.pid), me.start, secrets.token_hex(4)])


def owner_of(work: str) -> Owner | None:
    """The process that work is named after; None if the name is of another kind."""
    parts = work.split("~")
    if len(parts) != 6 or not parts[3].isdigit():
        return None
    return Owner(parts[1], parts[2], int(parts[3]), parts[4])


def is_abandoned(work: str, seconds_untouched: Callable[[str], float]) -> bool:
    """True if the process of the work has ended; or is of another host, and nothing was touched for a day."""
    owner = owner_of(work)
    if owner is None:
        return False
    gone = owner.is_gone(this_process())
    return seconds_untouched(work) > FOREIGN_AGE.total_seconds() if gone is None else gone


def _host() -> str:
    """The name of this machine and, where it has one, a digest of its id: two machines may have one name."""
    name = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()) or "localhost"
    try:
        return f"{name}.{hashlib.sha256(_MACHINE.read_bytes()).hexdigest()[:8]}"
    except OSError:
        return name


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
