"""How every property test runs: no deadline on a busy machine; in CI always the same examples."""

import os

from hypothesis import settings

settings.register_profile("squall", deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.load_profile("squall")
