"""What was asked of an upstream and how it went: counted by every client of it, shown in /health."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from app.clock import Clock
from app.errors import UpstreamError


@dataclass(frozen=True, slots=True)
class Tally:
    """Since the last `Meter.take`: calls and credits, when an answer and a failure came last, and what failed."""

    calls: int = 0
    credits: int = 0
    answered_at: datetime | None = None
    failed_at: datetime | None = None
    failure: str | None = None


class Meter:
    """Counts one upstream's calls; usable from any thread and shared by all clients of that upstream."""

    def __init__(self, source: str, clock: Clock) -> None:
        self.source = source
        self._clock = clock
        self._lock = threading.Lock()
        self._calls = self._credits = 0
        self._answered_at: datetime | None = None
        self._failed_at: datetime | None = None
        self._failure: str | None = None

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count the call inside; an UpstreamError out of it is a failure, and passes on."""
        with self._lock:
            self._calls += 1
        try:
            yield
        except UpstreamError as error:
            with self._lock:
                self._failed_at, self._failure = self._clock.now(), error.reason
            raise
        with self._lock:
            self._answered_at = self._clock.now()

    def spend(self, credit_count: int) -> None:
        """Count credits that an answer said it cost."""
        with self._lock:
            self._credits += credit_count

    def take(self) -> Tally:
        """Return what was counted since the last time, and begin anew."""
        with self._lock:
            tally = Tally(self._calls, self._credits, self._answered_at, self._failed_at, self._failure)
            self._calls = self._credits = 0
            self._answered_at = self._failed_at = self._failure = None
        return tally
