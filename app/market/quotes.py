"""Quotes in spite of single coins that CoinMarketCap refuses: one bad id fails a whole call."""

import logging
from collections.abc import Sequence

from app.clock import Clock
from app.market.coinmarketcap import CoinMarketCap, RefusedIdsError
from app.market.coinmarketcap_rows import Quote

logger = logging.getLogger(__name__)

REFUSED_FOR_SECONDS = 600.0
"""After this long a refused coin is asked for again."""
MOST_TRIES = 3
"""Calls that one batch may take."""


class Quotes:
    """Asks for what is not refused just now. Belongs to one thread."""

    def __init__(self, *, client: CoinMarketCap, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._refused_until: dict[int, float] = {}

    def of(self, coin_ids: Sequence[int]) -> list[Quote]:
        """Return the usable quotes of at most 250 coins. Raises UpstreamError."""
        for _ in range(MOST_TRIES - 1):
            asked = self._not_refused(coin_ids)
            try:
                return self._client.quotes(asked)
            except RefusedIdsError as error:
                if not self._refuse(error, asked):
                    raise
        return self._client.quotes(self._not_refused(coin_ids))

    def _not_refused(self, coin_ids: Sequence[int]) -> list[int]:
        now = self._clock.monotonic()
        return [coin_id for coin_id in coin_ids if self._refused_until.get(coin_id, now) <= now]

    def _refuse(self, error: RefusedIdsError, asked: Sequence[int]) -> bool:
        """Leave the named coins out for a while; False if that says nothing or leaves nothing."""
        refused = error.ids.intersection(asked)
        if not refused or len(refused) == len(asked):
            return False
        logger.error("%s; asking without coins %s for %d minutes", error, sorted(refused), REFUSED_FOR_SECONDS // 60)
        until = self._clock.monotonic() + REFUSED_FOR_SECONDS
        self._refused_until |= dict.fromkeys(refused, until)
        return True
