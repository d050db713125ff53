"""iceaggr: from raw pulses to a registered direction-reconstruction model."""

import os

__version__ = "0.1.0"
"""The one place of the version: package, image and errors read it here."""

# A thread of torch that has nothing to do waits for the next operation in a busy loop. By default
# it does so for about a millisecond, which on shared cores takes the time from the thread that it
# waits for: half the speed and less (docs/benchmarks.md). A tenth of that is long enough on idle
# cores. The OpenMP library reads the variable when torch is imported, so it is set before.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")
