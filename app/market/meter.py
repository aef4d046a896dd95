"""What was asked of an upstream and how it went: counted by every client of it, shown in /health and /metrics."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime

from app.clock import Clock
from app.errors import (
    UnknownPairError,
    UpstreamBlockedError,
    UpstreamError,
    UpstreamThrottledError,
    UpstreamTimeoutError,
)
from app.metrics import CallResult, Metrics

FAILURES: dict[type[UpstreamError], CallResult] = {
    UpstreamThrottledError: "throttled",
    UpstreamTimeoutError: "timeout",
    UpstreamBlockedError: "blocked",
}


@dataclass(frozen=True, slots=True)
class Tally:
    """Calls and credits since the last `Meter.take`; the rest is None where it is not news since then."""

    calls: int = 0
    credits: int = 0
    answered_at: datetime | None = None
    failed_at: datetime | None = None
    failure: str | None = None
    credits_left: int | None = None


class Meter:
    """Counts one upstream's calls; usable from any thread and shared by all clients of that upstream."""

    def __init__(self, source: str, clock: Clock, metrics: Metrics | None = None) -> None:
        self.source = source
        self._clock = clock
        self._metrics = metrics or Metrics()
        self._lock = threading.Lock()
        self._tally = Tally()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count the call inside; an UpstreamError out of it is a failure, and passes on.

        That Bybit does not know a pair is a good answer to a bad question.
        """
        with self._lock:
            self._tally = replace(self._tally, calls=self._tally.calls + 1)
        try:
            yield
        except UnknownPairError:
            self._answered()
            raise
        except UpstreamError as error:
            self._failed(error)
            raise
        self._answered()

    def spend(self, credit_count: int) -> None:
        """Count credits that an answer said it cost."""
        with self._lock:
            self._tally = replace(self._tally, credits=self._tally.credits + credit_count)
        self._metrics.spent(self.source, credit_count)

    def have_left(self, credits_left: int) -> None:
        """Note how many credits the key still has."""
        with self._lock:
            self._tally = replace(self._tally, credits_left=credits_left)

    def take(self) -> Tally:
        """Return what was counted since the last time, and begin anew."""
        with self._lock:
            tally, self._tally = self._tally, Tally()
        return tally

    def peek(self) -> Tally:
        """Return what `take` would."""
        return self._tally

    def put_back(self, tally: Tally) -> None:
        """Undo a `take`: add to what was counted meanwhile, which is newer."""
        with self._lock:
            new = self._tally
            self._tally = Tally(
                calls=tally.calls + new.calls,
                credits=tally.credits + new.credits,
                answered_at=new.answered_at or tally.answered_at,
                failed_at=new.failed_at or tally.failed_at,
                failure=new.failure or tally.failure,
                credits_left=tally.credits_left if new.credits_left is None else new.credits_left,
            )

    def _answered(self) -> None:
        with self._lock:
            self._tally = replace(self._tally, answered_at=self._clock.now())
        self._metrics.called(self.source, "good")

    def _failed(self, error: UpstreamError) -> None:
        with self._lock:
            self._tally = replace(self._tally, failed_at=self._clock.now(), failure=error.reason)
        self._metrics.called(self.source, FAILURES.get(type(error), "failed"))
