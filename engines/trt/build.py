"""Builds in a child process: a native crash of the builder is an error here, and a build can be cancelled."""

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.base import EngineError, ModelError
from engines.scratch import scratch_folder
from engines.spec import BuildSpec
from engines.trt.builder import Built
from engines.trt.progress import Progress
from engines.trt.report import BuildReport

log = logging.getLogger("engines.trt")

GLANCE_SECONDS = 0.1  # how soon a cancel is seen
HEARTBEAT_SECONDS = 1.0  # how often progress is told where TensorRT tells nothing
GRACE_SECONDS = 2.0  # between asking a cancelled build to end and ending it
PARTIAL_LINE = 1 << 16


class BuildCancelledError(EngineError):
    """The build was cancelled; nothing is left of it."""


def build(
    model: bytes | Path,
    spec: BuildSpec,
    *,
    timing_cache: bytes = b"",
    on_progress: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
    module: str | None = None,
) -> Built:
    """An engine of an ONNX model, built by the installed TensorRT in a process of its own.

    Args:
        model: ONNX as bytes, or the path of a file, beside which external weights may lie.
        spec: optimization profiles, flags, workspace and level.
        timing_cache: of an earlier build on the same GPU with the same TensorRT; one that does not fit is left aside.
        on_progress: told about once a second or oftener, in this thread.
        cancel: set it, from any thread, to end the build.
        module: the Python module of TensorRT, where several are installed.

    Raises:
        ModelError: TensorRT refuses the graph; names the node, its operator and what can be done.
        BuildCancelledError: `cancel` was set.
        EngineError: no TensorRT or no GPU here, or the builder failed or died; names the reason or the signal.
    """
    with scratch_folder("squall-scratch-build-") as folder:
        path = _place(model, folder)
        request = {"spec": spec.to_json(), "model": str(path), "module": module, "log_level": log.getEffectiveLevel()}
        (folder / "request.json").write_text(json.dumps(request))
        (folder / "timing_cache").write_bytes(timing_cache)
        code, last_words = _run(folder, on_progress or (lambda progress: None), cancel or threading.Event())
        return _collect(folder, path, code, last_words)


def _place(model: bytes | Path, folder: Path) -> Path:
    if isinstance(model, bytes):
        (folder / "model.onnx").write_bytes(model)
        return folder / "model.onnx"
    if not model.is_file():
        raise ModelError(f"there is no ONNX file {model}")
    return model.resolve()


@dataclass
class _Listener:
    """Turns the lines that the child writes into log records and progress."""

    on_progress: Callable[[Progress], None]
    started: float
    told: float = 0.0
    phase: str = "building"
    share: float | None = None
    rest: bytes = b""

    def hear(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            event = json.loads(line)
            if "message" in event:
                log.log(event["level"], "%s", event["message"])
            else:
                self.phase, self.share = event["phase"], event["share"]
                self._tell()

    def beat(self) -> None:
        """Tell at least that time passes."""
        if time.monotonic() - self.told >= HEARTBEAT_SECONDS:
            self._tell()

    def _tell(self) -> None:
        self.told = time.monotonic()
        self.on_progress(Progress(self.phase, self.share, self.told - self.started))


def _run(folder: Path, on_progress: Callable[[Progress], None], cancel: threading.Event) -> tuple[int, str]:
    """Exit code of the child and the end of what it wrote to stderr."""
    listener = _Listener(on_progress, time.monotonic())
    with open(folder / "output", "wb+") as output, _child(folder, output) as (process, events):
        with selectors.DefaultSelector() as ready:
            ready.register(events, selectors.EVENT_READ)
            while True:
                if cancel.is_set():
                    raise BuildCancelledError(
                        f"the build was cancelled after {time.monotonic() - listener.started:.0f} s"
                    )
                if ready.select(GLANCE_SECONDS):
                    data = os.read(events, PARTIAL_LINE)
                    if not data:
                        break
                    listener.hear(data)
                listener.beat()
        code = process.wait()
        output.seek(max(0, output.seek(0, os.SEEK_END) - 2000))
        return code, output.read().decode(errors="replace").strip()


@contextmanager
def _child(folder: Path, output: Any) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The running child and the end of the pipe on which it tells; it does not outlive the block, nor this process."""
    receive, send = os.pipe()
    command = [sys.executable, "-m", "engines.trt.child", str(folder), str(send)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    env.setdefault("CUDA_MODULE_LOADING", "LAZY")
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=env, pass_fds=[send]
        )
    finally:
        os.close(send)
    try:
        yield process, receive
    finally:
        os.close(receive)
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    if process.stdin:
        process.stdin.close()
    process.wait()


def _collect(folder: Path, model: Path, code: int, last_words: str) -> Built:
    if (folder / "error.json").exists():
        error = json.loads((folder / "error.json").read_text())
        raise {"ModelError": ModelError, "EngineError": EngineError}[error["kind"]](error["message"])
    if code:
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        hint = "; was it short of host memory?" if -code == signal.SIGKILL else ""
        raise EngineError(f"the builder died {how} while it built {model.name}{hint}; its last words: {last_words}")
    if not (folder / "report.json").exists():
        raise EngineError(f"the builder ended without an engine of {model.name}; its last words: {last_words}")
    report = BuildReport.from_json(json.loads((folder / "report.json").read_text()))
    timing_cache, inspection = (folder / "timing_cache").read_bytes(), (folder / "inspection.json").read_text()
    return Built((folder / "engine").read_bytes(), timing_cache, report, inspection)
