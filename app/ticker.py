"""From CoinMarketCap's prices to fired alerts: `Ticker.poll()` is what the scheduler thread runs."""

import logging
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from typing import Any

from pymongo.errors import PyMongoError

from app.alerting import firing
from app.clock import Clock
from app.config import Settings, load_settings
from app.database import coins, feeds, firings
from app.database.client import SyncDB
from app.duty import Duty
from app.errors import UpstreamError, UpstreamThrottledError
from app.market.coinmarketcap import IDS_PER_CALL, SOURCE, CoinMarketCap, Quote
from app.market.coins import refresh_map_if_due
from app.market.meter import Meter
from app.observations import Observation

logger = logging.getLogger(__name__)

BITCOIN = 1
FIRST_PAUSE = timedelta(seconds=60)
LONGEST_PAUSE = timedelta(minutes=15)
POLLS_UNTIL_TAKEOVER = 3
"""After how many polls' silence another copy of the service takes over."""
POLLS_PER_MAP_TRY = 3
"""How many polls a map that could not be fetched is left alone for: it must not double the number of calls."""
MOST_UNEVALUATED = 10_000
"""Batches of observations kept while MongoDB is away: over a day of polls at the default pace."""


class Ticker:
    """Polls prices and has them evaluated. Belongs to one thread; keeps what MongoDB could not take yet."""

    def __init__(self, *, settings: Settings, database: SyncDB, client: CoinMarketCap, clock: Clock) -> None:
        self._settings = settings
        self._database = database
        self._client = client
        self._clock = clock
        self._polled_ids: list[int] = [coin["_id"] for coin in coins.ALWAYS_KNOWN]
        self._unevaluated: deque[list[Observation]] = deque(maxlen=MOST_UNEVALUATED)
        self._silent_until = clock.now()
        self._pause = FIRST_PAUSE
        self._map_not_before = clock.monotonic()
        self._news: dict[str, Any] = {}
        self._duty = Duty(
            "polling",
            database=database,
            clock=clock,
            length=timedelta(seconds=POLLS_UNTIL_TAKEOVER * settings.poll_seconds),
        )

    def retire(self) -> None:
        """Let another copy poll from now on. Raises PyMongoError."""
        self._duty.give_up()

    def poll(self) -> int:
        """Ask for prices and evaluate them, if no other copy does; returns how many alerts fired.

        Never raises for what CoinMarketCap does. Raises PyMongoError while MongoDB is away: what was observed
        meanwhile is kept and evaluated, oldest first, by the next poll that reaches it.
        """
        if self._duty.is_ours():
            self._observe()
        fired = 0
        while self._unevaluated:
            fired += self._evaluate(self._unevaluated[0])
            self._unevaluated.popleft()
        if self._news:
            feeds.record(self._database, source=SOURCE, **self._news)
            self._news.clear()
        return fired

    def _observe(self) -> None:
        if self._clock.now() < self._silent_until:
            return
        try:
            if not self._unevaluated:  # else MongoDB is away: the coins of the last poll will do
                self._choose_coins()
            for start in range(0, len(self._polled_ids), IDS_PER_CALL):
                self._observe_batch(self._polled_ids[start : start + IDS_PER_CALL])
        except UpstreamThrottledError as error:
            self._stay_silent(error)

    def _choose_coins(self) -> None:
        """The watched coins, filled up with the best-ranked others to whole calls; while MongoDB is away, as before."""
        try:
            self._refresh_map()
            watched = sorted(firings.watched_coins(self._database))
            room = -len(watched) % IDS_PER_CALL or (0 if watched else IDS_PER_CALL)
            ranked = coins.best_ranked(self._database, count=len(watched) + room)
        except PyMongoError as error:
            logger.warning("MongoDB is away (%s): polling the coins of the last poll", type(error).__name__)
            return
        taken = set(watched)
        others = [coin_id for coin_id in ranked if coin_id not in taken]
        self._polled_ids = watched + others[:room]

    def _refresh_map(self) -> None:
        if self._clock.monotonic() < self._map_not_before:
            return
        try:
            refresh_map_if_due(self._database, self._client, self._clock)
        except UpstreamThrottledError:
            raise
        except UpstreamError as error:
            wait = POLLS_PER_MAP_TRY * self._settings.poll_seconds
            self._map_not_before = self._clock.monotonic() + wait
            logger.warning("no map of coins, next try in %g s: %s", wait, error)

    def _observe_batch(self, coin_ids: Sequence[int]) -> None:
        try:
            quotes = self._client.quotes(coin_ids)
        except UpstreamThrottledError:
            raise
        except UpstreamError as error:
            # The next poll is the retry, and it comes no sooner than in good times: no back-off is needed on top.
            logger.warning("no prices from this call: %s", error)
            self._note_error(error)
            return
        self._pause = FIRST_PAUSE
        observations = self._observed(quotes)
        if observations:
            self._unevaluated.append(observations)
            self._news["last_good_at"] = observations[0].end

    def _observed(self, quotes: Sequence[Quote]) -> list[Observation]:
        """Turn fresh quotes into observations of this instant, one per coin; stale ones are no observation."""
        now = self._clock.now()
        oldest = now - timedelta(seconds=self._settings.stale_after_seconds)
        fresh = {quote.coin_id: quote.price for quote in quotes if quote.last_updated >= oldest}
        return [
            Observation.of_instant(coin_id=coin_id, at=now, price=price, source=SOURCE)
            for coin_id, price in fresh.items()
        ]

    def _stay_silent(self, error: UpstreamThrottledError) -> None:
        """Wait as long as CoinMarketCap said, or ever longer where it named no time."""
        now = self._clock.now()
        self._silent_until = error.retry_at or now + self._pause
        if error.retry_at is None:
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
        logger.warning("%s; not asking again before %s", error, self._silent_until.isoformat())
        self._note_error(error)

    def _note_error(self, error: UpstreamError) -> None:
        self._news |= {"last_error_at": self._clock.now(), "last_error": error.reason}

    def _evaluate(self, observations: list[Observation]) -> int:
        # Prices are stored before they are evaluated: an alert that is being created now either is seen by this
        # evaluation or, finding the newer price, restates its creation as later than it (see alerting/creation.py).
        coins.store_prices(self._database, observations)
        return firing.evaluate(self._database, observations, now=self._clock.now())


def get_bitcoin_price() -> float:
    """Ask CoinMarketCap for Bitcoin's price in USD, now, with the service's own settings.

    Raises SettingsError if those are incomplete, UpstreamError if no usable price comes back.
    """
    settings = load_settings()
    with closing(connect_coinmarketcap(settings, Clock())) as client:
        quotes = client.quotes([BITCOIN])
    if not quotes:
        raise UpstreamError(SOURCE, "the reply holds no usable price of Bitcoin")
    return quotes[0].price


def connect_coinmarketcap(settings: Settings, clock: Clock, meter: Meter | None = None) -> CoinMarketCap:
    """Make the client of CoinMarketCap that the settings describe; it connects when first used."""
    return CoinMarketCap(
        base_url=settings.coinmarketcap_url, api_key=settings.coinmarketcap_api_key, clock=clock, meter=meter
    )
