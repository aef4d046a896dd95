"""How often Bybit may be asked from this process: a sliding window, and silence where Bybit demanded it."""

import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta

from app.clock import Clock
from app.errors import UpstreamError, UpstreamThrottledError

WINDOW_SECONDS = 5.0
MOST_REQUESTS = 500
"""In one window. Bybit allows an address 600, counted where they arrive: the rest is for jitter on the way."""
MOST_FOR_CALLERS = 400
"""Of those, what API callers may use up: snapshots and the candles of alerts always find some left."""

ErrorMaker = Callable[[datetime], UpstreamError]
"""Makes the error of a refused call, given until when (aware UTC) calls are refused."""


class RequestBudget:
    """One for all threads of the process."""

    def __init__(self, source: str, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._lock = threading.Lock()
        self._spent: deque[float] = deque()
        self._silent_until = 0.0
        self._refuse: ErrorMaker = self._exhausted

    def spend(self, *, for_caller: bool) -> None:
        """Take one request from the budget. Raises an UpstreamError, with the time to retry at, if none is left."""
        most = MOST_FOR_CALLERS if for_caller else MOST_REQUESTS
        with self._lock:
            now = self._clock.monotonic()
            if now < self._silent_until:
                raise self._refuse(self._at(self._silent_until - now))
            while self._spent and self._spent[0] <= now - WINDOW_SECONDS:
                self._spent.popleft()
            if len(self._spent) >= most:
                raise self._exhausted(self._at(self._spent[-most] + WINDOW_SECONDS - now))
            self._spent.append(now)

    def silence(self, seconds: float, error: ErrorMaker) -> UpstreamError:
        """Refuse every call for so long, with `error`, which is also returned. An earlier, longer silence stays."""
        with self._lock:
            until = self._clock.monotonic() + seconds
            if until > self._silent_until:
                self._silent_until, self._refuse = until, error
            return error(self._at(seconds))

    def _at(self, seconds: float) -> datetime:
        return self._clock.now() + timedelta(seconds=seconds)

    def _exhausted(self, retry_at: datetime) -> UpstreamError:
        return UpstreamThrottledError(self._source, "this service's own request budget is used up", retry_at)
