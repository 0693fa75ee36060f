"""What the small objects say by which cycles are published on an object store: claims, markers, and the pointer."""

import json
import re
from dataclasses import dataclass

from pipelines.errors import OutputError

_STORE = re.compile(r"\d{4}/\d{2}/\d{2}/\d+\.[0-9a-f]+\.zarr")


@dataclass(frozen=True)
class Claim:
    """The store of one run, and the cycle that it is published as; both are names below the product.

    Attributes:
        cycle: such as 2016/09/28/1530.json; "" in a marker, whose store is not published.
        store: such as 2016/09/28/1530.3f2a5c01.zarr.
    """

    cycle: str
    store: str

    def as_json(self) -> bytes:
        """Its bytes."""
        return json.dumps({"cycle": self.cycle, "store": self.store}, indent=1).encode()


def read_claim(url: str, data: bytes) -> Claim:
    """The claim that an object holds.

    Raises:
        OutputError: it is damaged, or what it names can be no store of a run (names the object and what it holds).
    """
    try:
        tree = json.loads(data)
        claim = Claim(tree["cycle"], tree["store"])
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{url} is damaged ({error!r}); expected JSON with cycle and store") from error
    if not (isinstance(claim.cycle, str) and isinstance(claim.store, str) and _STORE.fullmatch(claim.store)):
        raise OutputError(f"{url} names {claim}; expected a store such as 2016/09/28/1530.3f2a5c01.zarr")
    return claim
