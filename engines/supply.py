"""From a typed graph to a loaded engine: out of the cache, with other weights put in, or built.

```
engine file of the key in the cache? --no--> build (one process; the others wait) --> keep
          | yes                                                                        |
same weights? --no--> refit what was loaded --refused--> build with these weights      |
          | yes              |                                     |                   |
        loaded            refitted                               built  <--------------+
```
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic
from typing import Literal

from engines import cuda
from engines.base import Engine, EngineError
from engines.cache import BuildLog, EngineCache, EngineFile
from engines.lock import Holder
from engines.ort import OnnxRuntime
from engines.runtime import Runtime
from engines.sealed import Manifest
from engines.spec import BuildSpec, EngineKey
from engines.trt.memory import LANES
from engines.trt.runtime import TensorRTRuntime
from engines.typed import TypedModel

log = logging.getLogger(__name__)

Name = Literal["auto", "onnxruntime", "tensorrt"]
How = Literal["loaded", "refitted", "built"]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Supplied:
    """A loaded engine, its key, how it came about, what that took (seconds), and why it is not kept if it is not."""

    engine: Engine
    key: EngineKey
    how: How
    seconds: float
    manifest: Manifest
    unkept: EngineError | None = None


def find_runtime(name: Name = "auto", threads: int = 1, lanes: int = LANES) -> Runtime:
    """The runtime of that name; `auto` is TensorRT where there is a GPU and ONNX Runtime elsewhere.

    Args:
        threads: of one inference of ONNX Runtime.
        lanes: batches that are on their way at once in an engine of TensorRT.

    Raises:
        EngineError: TensorRT is not installed, or there is no GPU.
    """
    if name == "tensorrt" or (name == "auto" and cuda.device_count()):
        return TensorRTRuntime(lanes=lanes)
    return OnnxRuntime(threads)


def supply(
    runtime: Runtime, cache: EngineCache, model: TypedModel, spec: BuildSpec, tell: Tell = lambda text: None
) -> Supplied:
    """The engine of a typed graph, loaded, with the weights of that graph.

    Args:
        tell: called with one line whenever there is news of a build, here or in another process.

    Raises:
        ModelError: the runtime refuses the graph.
        EngineError: the build or the loading failed.
    """
    started, key = monotonic(), runtime.key(model, spec)
    file, how = fetch(runtime, cache, key, model, spec, tell)
    engine = runtime.load(file.data)
    if file.manifest.notes.get("weights_sha256", model.weights_sha256) != model.weights_sha256:
        try:
            runtime.refit(engine, model, file.manifest.notes)
            how = "refitted"
        except EngineError as error:
            log.warning("refit refused, the engine is built again: %s", error)
            engine.close()
            key = replace(key, weights_sha256=model.weights_sha256)
            file, how = fetch(runtime, cache, key, model, spec, tell)
            engine = runtime.load(file.data)
    return Supplied(engine, key, how, monotonic() - started, file.manifest, file.unkept)


def fetch(
    runtime: Runtime, cache: EngineCache, key: EngineKey, model: TypedModel, spec: BuildSpec, tell: Tell
) -> tuple[EngineFile, How]:
    """The verified engine file of a key, and whether it was built for this; other processes build nothing meanwhile."""
    how: How = "loaded"

    def build(build_log: BuildLog) -> bytes:
        nonlocal how
        how, timings = "built", cache.timing(key) or b""

        def both(text: str) -> None:
            build_log.progress(text)
            tell(text)

        built = runtime.build(model, spec, timings, both)
        if built.timings and built.timings != timings:
            cache.merge_timing(key, built.timings, runtime.merge)
        for name, value in {**built.notes, "weights_sha256": model.weights_sha256}.items():
            build_log.note(name, value)
        return built.data

    def on_wait(holder: Holder) -> None:
        tell(f"waiting for {holder}")

    return cache.get_or_build(key, build, runtime.refuse, on_wait), how
