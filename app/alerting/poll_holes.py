"""When polls said nothing of a coin for too long: listed, so that a receipt can tell (invariant 5)."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from app.clock import Clock
from app.database import coins, coverage
from app.database.client import SyncDB
from app.database.coverage import Hole
from app.errors import UpstreamError
from app.market.coinmarketcap import SOURCE
from app.observations import Observation

BEFORE_ALL = datetime(1970, 1, 1, tzinfo=UTC)
SHORTEST, LONGEST = timedelta(minutes=1), timedelta(hours=1)
POLLS_MISSED = 3


def longest_gap(poll_seconds: float) -> timedelta:
    """How far apart two polls may be without a hole between them."""
    return min(max(SHORTEST, timedelta(seconds=POLLS_MISSED * poll_seconds)), LONGEST)


class PollHoles:
    """Compares each observation with its coin's last. Belongs to the thread that polls."""

    def __init__(self, *, database: SyncDB, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._began_at = clock.now()
        self._last_failure: tuple[datetime, str] | None = None

    def failed(self, error: UpstreamError) -> None:
        """Remember why no price came."""
        self._last_failure = self._clock.now(), error.reason

    def record(self, polls: Collection[list[Observation]], *, poll_seconds: float) -> None:
        """List the holes before these observations, oldest first. To be called before their prices are stored.

        Raises PyMongoError.
        """
        known = coins.prices_seen(self._database, {seen.coin_id for poll in polls for seen in poll})
        last_seen = {coin_id: price.at for coin_id, price in known.items()}
        holes = []
        for poll in polls:
            for seen in poll:
                before = last_seen.get(seen.coin_id, BEFORE_ALL)
                if seen.start - before > longest_gap(poll_seconds):
                    holes.append(Hole(seen.coin_id, SOURCE, before, seen.start, self._reason(before)))
                last_seen[seen.coin_id] = seen.end
        coverage.record_holes(self._database, holes)

    def _reason(self, start: datetime) -> str:
        if self._last_failure and self._last_failure[0] >= start:
            return f"no price from CoinMarketCap: {self._last_failure[1]}"
        if start < self._began_at:
            return "the service was not running, or did not poll this coin"
        return "CoinMarketCap gave no fresh price of this coin"
