"""How far tests look that make their own input: much the same each time, or ``EMQ_FUZZ`` times further and at random.

Hypothesis takes constants of the modules that are loaded into its input, so other tests before these change some of it.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

DEEP = int(os.environ.get("EMQ_FUZZ", "0"))


def bounded(examples: int) -> settings:
    """So many examples, on a machine of any speed."""
    return settings(
        max_examples=examples * max(DEEP, 1),
        deadline=None,
        database=None,
        derandomize=not DEEP,
        suppress_health_check=list(HealthCheck),
    )
