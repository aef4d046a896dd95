"""Waiting ever longer after each failure, in the one way that all parts of the service do it."""

import random
from datetime import timedelta
from typing import NamedTuple


class BackOff(NamedTuple):
    """How long to wait after the first failure, and at most after many."""

    first: timedelta
    longest: timedelta

    def after(self, failures: int) -> timedelta:
        """The wait after `failures` earlier ones: doubled each time, up to a quarter less to fall out of step."""
        doubled = self.first * (1 << min(failures, 30))
        return min(doubled, self.longest) * random.uniform(0.75, 1.0)
