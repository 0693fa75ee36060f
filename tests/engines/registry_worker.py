"""A process that uses a registry, for tests that kill it: `registry_worker.py <root> <packages> <who>`."""

import random
import sys
from contextlib import suppress
from pathlib import Path

from engines.registry import Registry, RegistryError

if __name__ == "__main__":
    root, packages, who = Path(sys.argv[1]), sorted(Path(sys.argv[2]).iterdir()), sys.argv[3]
    registry, choose = Registry(root), random.Random(who)
    print("ready", flush=True)
    while True:
        package = choose.choice(packages)
        version = registry.add(package, who=who).version
        registry.promote("test", version, who=who, why="hammer", force=True)
        if choose.random() < 0.3:
            with suppress(RegistryError):  # it may stand at its first version
                registry.rollback("test", who=who)
        print("done", flush=True)
