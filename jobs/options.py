"""What words on the command line mean; importing it waits for nothing."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

file = click.Path(exists=True, dir_okay=False, path_type=Path)


class NewFile(click.ParamType[Any]):
    """A file that is written in the end; that it can be is known at the start."""

    name = "path"

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        path = Path(value)
        target = path if path.exists() else path.parent
        if path.is_dir() or not path.parent.is_dir() or not os.access(target, os.W_OK):
            self.fail(f"{value} cannot be written; name a file in a folder that you may write to", param, ctx)
        return path


class Precisions(click.ParamType[Any]):
    """Precisions, with commas between them, each once."""

    name = "precision"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        from engines.precision import Precision

        try:
            found = tuple(dict.fromkeys(Precision.parse(word.strip()) for word in value.split(",")))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if any(precision.is_packed for precision in found):
            self.fail(f"{value!r}: packed input and output are not published; write float32, half or int8", param, ctx)
        return found


class Tile(click.ParamType[Any]):
    """Tiles of a batch, and rows and columns of each: `4x512x512`."""

    name = "NxHxW"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int, int]:
        words = value.split("x")
        if len(words) != 3 or not all(word.isdecimal() and int(word) for word in words):
            self.fail(f"{value!r} is no shape; write tiles of a batch, rows and columns, such as 4x512x512", param, ctx)
        count, rows, columns = map(int, words)
        return count, rows, columns


def precision_option(default: str) -> Callable[[Any], Any]:
    """`--precision`, one or several."""
    return click.option(
        "--precision", "precisions", type=Precisions(), default=default, show_default=True,
        help="float32, half or int8; several with commas.",
    )  # fmt: skip
