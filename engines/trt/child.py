"""The child process of a build: `python -m engines.trt.child FOLDER FD`. Results are files; progress goes to FD."""

import json
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

from engines.base import EngineError, ModelError
from engines.spec import BuildSpec
from engines.trt.builder import Built, build_here
from engines.trt.progress import new_monitor
from engines.trt.surface import load_surface


def main(folder: Path, events: int) -> None:
    """Build what `request.json` asks for; leaves `engine`, `timing_cache` and `report.json`, or `error.json`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request = json.loads((folder / "request.json").read_text())
    try:
        _leave(folder, _build(request, folder, events))
    except EngineError as error:
        kind = "ModelError" if isinstance(error, ModelError) else "EngineError"
        (folder / "error.json").write_text(json.dumps({"kind": kind, "message": str(error)}))


def _build(request: dict[str, Any], folder: Path, events: int) -> Built:
    surface = load_surface(request["module"])

    one_at_a_time = threading.Lock()  # TensorRT logs from several threads

    def tell(**event: Any) -> None:
        with one_at_a_time:
            os.write(events, json.dumps(event).encode() + b"\n")

    def log(level: int, message: str) -> None:
        if level >= request["log_level"]:
            tell(level=level, message=message)

    monitor = new_monitor(surface, lambda phase, share: tell(phase=phase, share=share))
    spec, cache = BuildSpec.from_json(request["spec"]), (folder / "timing_cache").read_bytes()
    return build_here(surface, Path(request["model"]), spec, cache, log, monitor)


def _leave(folder: Path, built: Built) -> None:
    (folder / "engine").write_bytes(built.engine)
    (folder / "timing_cache").write_bytes(built.timing_cache)
    (folder / "inspection.json").write_text(built.inspection)
    (folder / "report.json").write_text(json.dumps(built.report.to_json()))


def _end_with_parent() -> None:
    """The parent holds the other end of stdin: it closes when the parent ends, however it ends."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    logging.captureWarnings(True)
    main(Path(sys.argv[1]), int(sys.argv[2]))
