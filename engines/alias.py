"""Aliases, which say what version of a model is in use, and the moves of their histories. Decisions; stores nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from engines.base import RegistryError

ALIASES = ("production", "canary", "shadow")


def checked_alias(text: str) -> str:
    """The text if it is an alias; else a RegistryError that names those there are."""
    if text not in ALIASES:
        raise RegistryError(f"no alias {text!r}; there are {', '.join(ALIASES)}")
    return text


@dataclass(frozen=True)
class Move:
    """An entry in the history of an alias.

    Attributes:
        number: of the entry; the highest says which version is in use.
        action: "promote" or "rollback".
        undo: number of the entry to which a rollback returns; None for the first.
        is_forced: promoted without a passing gate.
    """

    number: int
    alias: str
    version: str
    action: str
    undo: int | None
    who: str
    why: str
    at: str
    is_forced: bool = False


def promoted(
    history: Sequence[Move], alias: str, version: str, who: str, why: str, at: str, is_forced: bool = False
) -> Move:
    """The move to `version`, or the last one if the alias stands there already."""
    last = history[-1] if history else None
    if last is not None and last.version == version:
        return last
    number, undo = (1, None) if last is None else (last.number + 1, last.number)
    return Move(number, alias, version, "promote", undo, who, why, at, is_forced)


def rolled_back(history: Sequence[Move], who: str, why: str, at: str) -> Move:
    """The move one step back from where the alias stands; rolling back again goes one further.

    Raises:
        RegistryError: there is nothing to go back to.
    """
    if not history:
        raise RegistryError("nothing to roll back: the alias was never promoted")
    last = history[-1]
    target = next((move for move in history if move.number == last.undo), None)
    if target is None:
        raise RegistryError(f"nothing to roll back to: {last.alias} stands at {last.version}, its first version")
    return Move(last.number + 1, last.alias, target.version, "rollback", target.undo, who, why, at)
