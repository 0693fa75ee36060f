"""What words on the command line mean; importing it waits for nothing."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np

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


class Time(click.ParamType[Any]):
    """A reference time in UTC; where it is allowed also `latest`, which becomes None."""

    name = "time"

    def __init__(self, or_latest: bool = False) -> None:
        self._or_latest = or_latest

    def convert(self, value: Any, param: Any, ctx: Any) -> np.datetime64 | None:
        if self._or_latest and value == "latest":
            return None
        try:
            return _utc(value)
        except (ValueError, OverflowError):
            words = "latest or UTC" if self._or_latest else "UTC"
            self.fail(f"{value!r} is no time; write {words} such as 2016-09-28T15:30Z", param, ctx)


def _utc(text: str) -> np.datetime64:
    """A time in ISO 8601, UTC unless it says otherwise, in the years that nanoseconds reach."""
    found = datetime.fromisoformat(text)
    time = found if found.tzinfo is None else found.astimezone(UTC).replace(tzinfo=None)
    if not 1678 <= time.year < 2262:
        raise ValueError(f"{text} is out of range")
    return np.datetime64(time, "ns")


class Step(click.ParamType[Any]):
    """A duration such as `10min`."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> np.timedelta64:
        from pipelines.product import parse_duration

        try:
            return np.timedelta64(parse_duration(value), "ns")
        except ValueError as error:
            self.fail(str(error), param, ctx)


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
