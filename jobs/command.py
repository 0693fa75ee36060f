"""What every command has: one clear end, and output for people or machines."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from pathlib import Path
from typing import Any

import click

from engines.room import DiskFullError
from jobs import folders, show
from jobs.outcome import Exit, exit_of

as_json = click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True)


def ends_clearly(command: Callable[..., Exit | None]) -> Callable[..., None]:
    """Turns the end of a command, good or bad, into one message and an exit code."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        _stop_cleanly()
        try:
            code = command(*args, **kwargs) or Exit.PUBLISHED
        except KeyboardInterrupt as error:
            code = _interrupted(str(error))
        except SystemExit as end:
            if end.code != signal.SIGTERM:
                raise
            code = _interrupted()  # while Ray is started, SIGTERM comes this way
        except click.ClickException:
            raise
        except Exception as error:
            show.problem(error, _way_out(error))
            code = exit_of(error)
            if code is Exit.FAILED and "--debug" in sys.argv:
                raise
        sys.exit(int(code))

    return wrapped


def is_done(what: str, step: Callable[[], object]) -> bool:
    """True if a step after the publication is done; else a warning names it, for the forecast is there all the same."""
    try:
        step()
    except Exception as error:
        show.warning(f"{what}: {error or type(error).__name__}")
        if "--debug" in sys.argv:
            show.err.print_exception()
        return False
    return True


@contextmanager
def only_the_report() -> Iterator[None]:
    """What is printed meanwhile goes to stderr: Ray prints lines of its own, and stdout is read by machines."""
    with redirect_stdout(sys.stderr):
        yield


def _way_out(error: BaseException) -> str:
    """What to do about a full disk; nothing for other errors."""
    full = next((each for each in (error, error.__cause__) if isinstance(each, DiskFullError)), None)
    return "" if full is None else folders.way_out(Path(full.filename))


def _interrupted(what: str = "") -> Exit:
    show.err.print(show.coloured("squall:", "bold red", f" interrupted; {what or 'nothing is half published'}"))
    return Exit.INTERRUPTED


def _stop_cleanly() -> None:
    """SIGTERM and SIGHUP end a command as Ctrl-C does, unless the user has it ignore them."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
