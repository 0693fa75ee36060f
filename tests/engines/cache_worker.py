"""A process that uses an engine cache, for tests that kill it: `cache_worker.py <root> <what> <key as JSON>`."""

import hashlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from engines.cache import BuildLog, EngineCache
from engines.spec import EngineKey


def content(n: int) -> bytes:
    """The engine of number n."""
    return hashlib.sha256(str(n).encode()).digest() * 4096


def build_forever(root: Path, key: EngineKey) -> None:
    """Engines and merges without end; each number that is done is a line on standard output."""
    cache = EngineCache(root, max_bytes=20 * len(content(0)))
    for n in range(10_000):
        wanted = content(n)
        assert cache.get_or_build(replace(key, graph_sha256=f"{n:064x}"), lambda log, data=wanted: data).data == wanted
        cache.merge_timing(key, bytes([n % 256]), lambda kept, fresh: (kept + fresh)[-1000:])
        print(n, flush=True)


def stall(log: BuildLog) -> bytes:
    log.progress("layer 1 of 2")
    print("building", flush=True)
    time.sleep(60)
    return b""


def slowly(log: BuildLog) -> bytes:
    print("built", flush=True)
    time.sleep(0.3)
    return b"engine"


if __name__ == "__main__":
    root, key = Path(sys.argv[1]), EngineKey.from_json(json.loads(sys.argv[3]))
    match sys.argv[2]:
        case "stall":
            EngineCache(root).get_or_build(key, stall)
        case "once":
            print(EngineCache(root).get_or_build(key, slowly).data.decode())
        case "forever":
            build_forever(root, key)
