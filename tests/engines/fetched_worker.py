"""A process that opens a version among the fetched ones, says so, and ends when its input does."""

import sys
from pathlib import Path

from engines.fetched import Fetched
from engines.release import parse_release


def refuse(folder: Path) -> None:
    raise AssertionError("it is here already")


if __name__ == "__main__":
    root, record, version = sys.argv[1:]
    Fetched(Path(root)).open(parse_release(Path(record).read_bytes(), "test", version), refuse)
    print("open", flush=True)
    sys.stdin.read()
