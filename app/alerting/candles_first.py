"""After an outage the candles of the hole come before newer polls, so that an alert tells its first touch.

Without this, the first poll after an hour's outage would fire an alert that the market touched fifty minutes earlier,
and its mail would name the wrong minute and price. Alerts that no candle can fire wait for none.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from app.clock import Clock
from app.database import coverage
from app.database.client import SyncDB
from app.errors import UpstreamError
from app.spans import SETTLING, floor_to_minute

USUALLY_DONE = SETTLING + timedelta(seconds=15)
"""How long after a minute's end its candles have been evaluated, unless something was out."""
LONGEST_WAIT_SECONDS = 30.0
"""For one coin's candles; they usually take less than a second."""

FAILURE_COUNTS_SECONDS = 90.0
"""How long a failure of Bybit keeps polls from waiting for it; while it goes on failing, it is tried more often."""


class CandlesFirst:
    """Which coins' polls wait a moment. Shared by the thread that polls and the one that follows candles."""

    def __init__(self, *, database: SyncDB, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._behind_since: dict[int, float] = {}
        self._looked_at = clock.monotonic()
        self._bybit_failed_at = -math.inf

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Around each round of candles: while Bybit fails, polls wait for nothing."""
        try:
            yield
        except UpstreamError:
            self._bybit_failed_at = self._clock.monotonic()
            raise
        self._bybit_failed_at = -math.inf

    def waiting(self) -> set[int]:
        """Return the ids of the coins whose hole is about to be filled. Raises PyMongoError."""
        now = self._clock.monotonic()
        behind = coverage.behind(self._database, before=floor_to_minute(self._clock.now() - USUALLY_DONE))
        if now - self._bybit_failed_at < FAILURE_COUNTS_SECONDS:
            self._behind_since = {}
            return set()
        if now - self._looked_at > LONGEST_WAIT_SECONDS:  # MongoDB was away: nobody had a chance to catch up
            self._behind_since = {}
        self._looked_at = now
        self._behind_since = {coin_id: self._behind_since.get(coin_id, now) for coin_id in behind}
        return {coin_id for coin_id, since in self._behind_since.items() if now - since < LONGEST_WAIT_SECONDS}
