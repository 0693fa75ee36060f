"""What every command has: one clear end, and output for people or machines."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from jobs import show
from jobs.outcome import Exit, exit_of

as_json = click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True)


def ends_clearly(command: Callable[..., Exit | None]) -> Callable[..., None]:
    """Turns the end of a command, good or bad, into one message and an exit code."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            code = command(*args, **kwargs) or Exit.PUBLISHED
        except KeyboardInterrupt as error:
            show.err.print(f"[bold red]squall:[/] interrupted; {str(error) or 'nothing was published'}")
            code = Exit.INTERRUPTED
        except click.ClickException:
            raise
        except Exception as error:
            show.problem(error)
            code = exit_of(error)
            if code is Exit.FAILED and "--debug" in sys.argv:
                raise
        sys.exit(int(code))

    return wrapped
