"""Which coin a ticker means: CoinMarketCap's map, kept in MongoDB and refreshed daily."""

import logging
from datetime import timedelta
from typing import NoReturn

from app.clock import Clock
from app.database import coins, feeds
from app.database.client import AsyncDB, Document, SyncDB
from app.errors import UnavailableError, UnprocessableError, UpstreamError
from app.market.coinmarketcap import SOURCE, CoinMarketCap
from app.market.coinmarketcap_rows import MappedCoin

logger = logging.getLogger(__name__)

REFRESH_EVERY = timedelta(days=1)
LEAST_SHARE = 0.5
"""A map with a smaller share of the coins known before is half a reply: nothing is delisted at that rate."""


async def explain_unknown(database: AsyncDB, ticker: str) -> NoReturn:
    """Say why no coin was found for a ticker. Never waits for CoinMarketCap.

    Raises UnprocessableError for a ticker that no active coin has, and UnavailableError while the map has never been
    fetched (BTC and ETH are known all the same).
    """
    known = await feeds.feed(database, source=SOURCE)
    if "mapped_at" not in known:
        raise UnavailableError(
            "The list of coins has not been fetched yet; only BTC and ETH are known. Try again in a minute.", 60
        )
    raise UnprocessableError(f"No active coin has the ticker {ticker!r}. Check its spelling on coinmarketcap.com.")


def refresh_map_if_due(database: SyncDB, client: CoinMarketCap, clock: Clock) -> None:
    """Fetch and store the whole map if the stored one is a day old. Raises UpstreamError, also for half a map."""
    now = clock.now()
    mapped_at = feeds.mapped_at(database, source=SOURCE)
    if mapped_at is not None and now - mapped_at < REFRESH_EVERY:
        return
    mapped = client.map()
    known = coins.count_mapped(database)
    if len(mapped) < max(1, known * LEAST_SHARE):
        raise UpstreamError(SOURCE, f"a map of {len(mapped)} coins, where {known} are known: the stored one is kept")
    count = coins.replace_map(database, [_stored(coin) for coin in mapped], now=now)
    feeds.record(database, source=SOURCE, mapped_at=now)
    logger.info("map of coins refreshed: %d active coins", count)


def _stored(coin: MappedCoin) -> Document:
    return {
        "_id": coin.coin_id,
        "symbol": coin.symbol,
        "ticker": coin.symbol.upper(),
        "name": coin.name,
        "rank": coin.rank or coins.UNRANKED,
    }
