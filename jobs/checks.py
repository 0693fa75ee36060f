"""Shards of blocks that are done, read back and checked by threads of the driver while workers make the others."""

from concurrent.futures import Future
from typing import Any

from pipelines.sink import CHECKED_TOGETHER, Draft, check_block
from pipelines.spans import Stopwatch
from pipelines.threads import end, staying
from pipelines.tiling import Block


class Checks:
    """The checks of one draft. `with` ends them: none runs afterwards, what has not begun is left out."""

    def __init__(self, draft: Draft, watch: Stopwatch) -> None:
        self._draft, self._watch = draft, watch
        self._begun: list[Future[dict[str, str]]] = []

    def __enter__(self) -> "Checks":
        return self

    def __exit__(self, *error: Any) -> None:
        end(self._begun)

    def begin(self, block: Block) -> None:
        """Has the shards of a block checked as soon as a thread is free."""
        self._begun.append(staying(CHECKED_TOGETHER, "check").submit(self._check, block))

    def whole(self) -> dict[str, str]:
        """All shards that were found whole, as `check_block` gives them; waits until all are checked.

        Raises:
            OutputError: a shard cannot be read.
        """
        return {key: stamp for checked in self._begun for key, stamp in checked.result().items()}

    def _check(self, block: Block) -> dict[str, str]:
        with self._watch("check"):
            return check_block(self._draft, block.window)
