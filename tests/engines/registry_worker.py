"""A process that uses a registry, for tests that kill it: `registry_worker.py <kind> <root> <packages> <who>`."""

import random
import sys
from contextlib import suppress
from pathlib import Path

from obstore.store import LocalStore

from engines.object_shelf import ObjectShelf
from engines.registry import Registry, RegistryError


def on_objects(root: Path) -> Registry:
    """A registry on the object store that obstore makes of a folder; it heeds put-if-absent."""
    return Registry(ObjectShelf(LocalStore(root / "store", mkdir=True), f"file://{root}", root / "cache"))


PLACES = {"folder": Registry, "objects": on_objects}

if __name__ == "__main__":
    kind, root, packages, who = sys.argv[1], Path(sys.argv[2]), sorted(Path(sys.argv[3]).iterdir()), sys.argv[4]
    registry, choose = PLACES[kind](root), random.Random(who)
    print("ready", flush=True)
    while True:
        package = choose.choice(packages)
        version = registry.add(package, who=who).version
        registry.promote("test", version, who=who, why="hammer", force=True)
        if choose.random() < 0.3:
            with suppress(RegistryError):  # it may stand at its first version
                registry.rollback("test", who=who)
        print("done", flush=True)
