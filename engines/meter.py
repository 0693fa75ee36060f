"""The clock, the memory of this process and that of a GPU, and how much of each a step takes."""

import time
from dataclasses import dataclass

import psutil

from engines import cuda


class Meter:
    """Reads the clock, and the memory of this process and of a GPU."""

    def __init__(self, device: int = 0) -> None:
        self.device = device
        self._process = psutil.Process()

    def now(self) -> float:
        """Seconds since some moment."""
        return time.perf_counter()

    def host_bytes(self) -> int:
        """Memory of this process that is resident."""
        return int(self._process.memory_info().rss)

    def free_device_bytes(self) -> int | None:
        """Memory that is free on the GPU; None without one."""
        if not cuda.device_count():
            return None
        cuda.select(self.device)
        return cuda.free_bytes()


@dataclass(frozen=True)
class Growth:
    """Over a step: seconds, memory of the process, and memory taken on the GPU, None without one."""

    seconds: float
    host: int
    device: int | None


class Mark:
    """The moment before a step; reading the clock is the last thing here and the first in `passed`."""

    def __init__(self, meter: Meter) -> None:
        self._meter, self._free, self._host = meter, meter.free_device_bytes(), meter.host_bytes()
        self._now = meter.now()

    def passed(self) -> Growth:
        """What has grown since."""
        seconds, host, free = self._meter.now() - self._now, self._meter.host_bytes(), self._meter.free_device_bytes()
        device = None if self._free is None or free is None else self._free - free
        return Growth(seconds, host - self._host, device)
