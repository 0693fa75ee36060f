"""How every test runs: property tests without a deadline, in CI always the same examples, in `make fuzz` many more; Ray
with one token; and in several processes (`-n`), of which one starts all the Rays.

Ray reads whether clusters ask for a token once in a process, and keeps to it for every cluster that the process joins
afterwards: a cluster without tokens could not ask this one whether its actors are still wanted, and would end them.
"""

import os
import secrets
import signal

import pytest
from hypothesis import settings

os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup and background shells have commands ignore them
signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile(
    "squall",
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    max_examples=int(os.environ.get("SQUALL_EXAMPLES", "100")),
)
settings.load_profile("squall")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes, those that start a Ray run in one, and those of a file together."""
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
