"""The name of a run that uses workers. It says which process that is, so that another run can see that it has ended."""

from pipelines.staging import new_work, owner_of, this_process


def name_this_run() -> str:
    """A name that no other run has."""
    return new_work("run")


def has_ended(holder: str) -> bool:
    """True if the process of a run has ended; False also where that cannot be seen, as of another machine."""
    owner = owner_of(holder)
    return owner is not None and owner.is_gone(this_process()) is True
