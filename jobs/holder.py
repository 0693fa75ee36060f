"""The name of a run that uses workers. It says which process that is, so that another run can see that it has ended."""

import secrets

from pipelines.staging import Owner, this_process


def name_this_run() -> str:
    """A name that no other run has: `<host>~<boot>~<pid>~<start>~<random>`."""
    me = this_process()
    return "~".join([me.host, me.boot, str(me.pid), me.start, secrets.token_hex(8)])


def has_ended(holder: str) -> bool:
    """True if the process of a run has ended; False also where that cannot be seen, as of another machine."""
    parts = holder.split("~")
    if len(parts) != 5 or not parts[2].isdigit():
        return False
    return Owner(parts[0], parts[1], int(parts[2]), parts[3]).is_gone(this_process()) is True
