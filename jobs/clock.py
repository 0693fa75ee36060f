"""What time it is, and how far that may be from what other clocks say."""

from datetime import UTC, datetime

import numpy as np

AHEAD = np.timedelta64(30, "m")  # that clocks may differ by; a time zone is more


def now() -> np.datetime64:
    """UTC."""
    return np.datetime64(datetime.now(UTC).replace(tzinfo=None), "ns")
