"""How a command ends: exit codes, and which error leads to which."""

from enum import IntEnum

from engines.base import ModelError
from pipelines.errors import ConfigError, InputError


class Exit(IntEnum):
    """Exit codes of every squall command.

    A cycle that stands already is 0 too: what was asked for is there, and nothing was changed. REFUSED: the gate
    said no-go to a precision of a model, or it could not be had.
    """

    PUBLISHED = 0
    FAILED = 1
    USAGE = 2
    GAPS = 3
    NO_INPUT = 4
    BAD_CONFIGURATION = 5
    REFUSED = 6
    INTERRUPTED = 130


def exit_of(error: BaseException) -> Exit:
    """The exit code that an error ends with."""
    match error:
        case ConfigError() | ModelError():
            return Exit.BAD_CONFIGURATION
        case InputError():
            return Exit.NO_INPUT
        case KeyboardInterrupt():
            return Exit.INTERRUPTED
        case _:
            return Exit.FAILED
