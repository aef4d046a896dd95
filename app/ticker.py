"""From CoinMarketCap's prices to fired alerts: `Ticker.poll()` is what the scheduler thread runs."""

import logging
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from typing import Any

from pymongo.errors import PyMongoError

from app.alerting import firing
from app.alerting.candles_first import CandlesFirst
from app.alerting.poll_holes import PollHoles
from app.clock import Clock
from app.config import Settings, load_settings
from app.database import clock_repairs, coins, feeds, firings
from app.database.client import SyncDB
from app.duty import Duty
from app.errors import UpstreamError, UpstreamThrottledError
from app.market.coinmarketcap import IDS_PER_CALL, SOURCE, CoinMarketCap
from app.market.coinmarketcap_rows import Quote
from app.market.coins import refresh_map_if_due
from app.market.credits import Credits
from app.market.meter import Meter
from app.market.poll_pace import PollPace
from app.market.quotes import Quotes
from app.metrics import Metrics
from app.observations import Observation

logger = logging.getLogger(__name__)

BITCOIN = 1
POLLS_UNTIL_TAKEOVER = 3
"""After how many polls' silence another copy of the service takes over."""
POLLS_PER_MAP_TRY = 3
"""How many polls a map that could not be fetched is left alone for: it must not double the number of calls."""
MOST_UNEVALUATED = 10_000
"""Replies kept while MongoDB is away: at the default pace and up to 250 watched coins, over a day of them."""
LONGEST_EVALUATION_SECONDS = 10.0


class Ticker:
    """Polls prices and has them evaluated. Belongs to one thread; keeps what MongoDB could not take yet."""

    def __init__(
        self,
        *,
        settings: Settings,
        database: SyncDB,
        client: CoinMarketCap,
        credits_of_key: Credits,
        clock: Clock,
        candles_first: CandlesFirst,
        metrics: Metrics | None = None,
    ) -> None:
        self._settings = settings
        self._database = database
        self._client = client
        self._pace = PollPace(client=client, credits_of_key=credits_of_key, clock=clock, usual=settings.poll_seconds)
        self._told: dict[str, Any] = {}
        self._clock = clock
        self._metrics = metrics or Metrics()
        self._polled_ids: list[int] = [coin["_id"] for coin in coins.ALWAYS_KNOWN]
        self._unevaluated: deque[list[Observation]] = deque(maxlen=MOST_UNEVALUATED)
        self._delayed: deque[list[Observation]] = deque()
        self._resumed = False
        self._times_to_mend = False
        self._candles_first = candles_first
        self._holes = PollHoles(database=database, clock=clock)
        self._next_call = 0
        self._quotes = Quotes(client=client, clock=clock)
        self._map_not_before = clock.monotonic()
        self._news: dict[str, Any] = {}
        self._duty = Duty(
            "polling",
            database=database,
            clock=clock,
            length=timedelta(seconds=POLLS_UNTIL_TAKEOVER * settings.poll_seconds),
        )

    def mend_times(self) -> None:
        """Have what a clock that was ahead has written undone, once CoinMarketCap's time agrees with ours."""
        self._times_to_mend = True

    def retire(self) -> None:
        """Let another copy poll from now on. Raises PyMongoError."""
        self._duty.give_up()

    def poll(self) -> int:
        """Ask for prices and evaluate them, if no other copy does; returns how many alerts fired.

        Never raises for what CoinMarketCap does. Raises PyMongoError while MongoDB is away: what was observed
        meanwhile is kept and evaluated, oldest first, by the next polls that reach it.
        """
        ours = self._duty.is_ours()
        if ours:
            self._observe()
            self._resume()
        self._resumed = self._resumed and ours
        self._mend()
        fired = self._evaluate_kept()
        if ours and self._news:
            feeds.record(self._database, source=SOURCE, **self._news)
            self._news.clear()
        return fired

    def _resume(self) -> None:
        """Evaluate the last prices again, once the duty is ours: whoever had it may have died just before doing so."""
        if not self._resumed:
            watched = firings.watched_coins(self._database)
            last = coins.prices_seen(self._database, watched)
            self._delayed.appendleft(
                [
                    Observation.of_instant(coin_id=coin_id, at=seen.at, price=seen.price, source=SOURCE)
                    for coin_id, seen in last.items()
                ]
            )
            self._resumed = True

    def _mend(self) -> None:
        if self._times_to_mend and self._client.clock_agrees:
            mended = clock_repairs.undo_future(self._database, now=self._clock.now())
            self._times_to_mend = False
            if mended:
                logger.warning("%d times lay in the future: they are now", mended)

    def _evaluate_kept(self) -> int:
        """Evaluate what is kept, for as long as a poll may take: after an outage it must not keep us from observing."""
        if not (self._delayed or self._unevaluated):
            return 0
        deadline = time.monotonic() + LONGEST_EVALUATION_SECONDS
        waiting = self._candles_first.waiting()
        fired = self._evaluate_delayed(waiting, deadline)
        while self._unevaluated and time.monotonic() < deadline:
            observations = self._unevaluated[0]
            self._holes.record([observations], poll_seconds=self._pace.seconds)
            # Prices are stored before they are evaluated: an alert that is being created now either is seen by this
            # evaluation or, finding the newer price, restates its creation as later than it (see alerting/creation.py).
            coins.store_prices(self._database, observations, now=self._clock.now())
            fired += self._evaluate(observations, waiting)
            self._unevaluated.popleft()
            if delayed := [seen for seen in observations if seen.coin_id in waiting]:
                self._delayed.append(delayed)
        return fired

    def _evaluate_delayed(self, waiting: set[int], deadline: float) -> int:
        """Evaluate, in their order, what waited for candles; what still has to wait keeps its place."""
        fired = 0
        left: list[list[Observation]] = []
        try:
            while self._delayed and time.monotonic() < deadline:
                fired += self._evaluate(self._delayed[0], waiting)
                left.append([seen for seen in self._delayed.popleft() if seen.coin_id in waiting])
        finally:
            self._delayed.extendleft(later for later in reversed(left) if later)
        return fired

    def _evaluate(self, observations: list[Observation], waiting: set[int]) -> int:
        now = self._clock.now()
        return firing.evaluate(self._database, observations, now=now, candles_due=waiting, metrics=self._metrics)

    def _observe(self) -> None:
        may_poll = self._pace.may_poll(calls=-(-len(self._polled_ids) // IDS_PER_CALL))
        self._tell_pace()
        if not may_poll:
            return
        try:
            if not self._unevaluated:  # else MongoDB is away: the coins of the last poll will do
                self._choose_coins()
            starts = range(0, len(self._polled_ids), IDS_PER_CALL)
            # The call that was refused last time comes first: a limit must not always hit the same coins.
            for start in [*starts[self._next_call :], *starts[: self._next_call]]:
                self._next_call = start // IDS_PER_CALL
                self._observe_batch(self._polled_ids[start : start + IDS_PER_CALL])
            self._next_call = 0
        except UpstreamThrottledError as error:
            self._stay_silent(error)

    def _tell_pace(self) -> None:
        told = {"poll_seconds": self._pace.seconds, "budget": self._pace.budget}
        if told != self._told:
            self._news |= told
            self._told = told

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
        except (UpstreamError, PyMongoError) as error:
            self._leave_map(error)
        except Exception as error:
            # Whatever is odd about a map of thousands of coins, prices are more important.
            logger.exception("the map of coins could not be stored")
            self._leave_map(error)

    def _leave_map(self, error: Exception) -> None:
        wait = POLLS_PER_MAP_TRY * self._settings.poll_seconds
        self._map_not_before = self._clock.monotonic() + wait
        logger.warning("no map of coins, next try in %g s: %s", wait, error)

    def _observe_batch(self, coin_ids: Sequence[int]) -> None:
        try:
            quotes = self._quotes.of(coin_ids)
        except UpstreamThrottledError:
            raise
        except UpstreamError as error:
            # The next poll is the retry, and it comes no sooner than in good times: no back-off is needed on top.
            logger.warning("no prices from this call: %s", error)
            self._metrics.polled("failed")
            self._note_error(error)
            return
        self._pace.answered()
        observations = self._observed(quotes)
        self._metrics.polled("good" if observations else "stale")
        if not observations:
            reason = f"none of {len(quotes)} prices is fresh: they are stale, or this machine's clock is wrong"
            self._note_error(UpstreamError(SOURCE, reason))
            return
        self._keep(observations)
        self._news["last_good_at"] = observations[0].end

    def _keep(self, observations: list[Observation]) -> None:
        if len(self._unevaluated) == MOST_UNEVALUATED:
            logger.error("MongoDB was away too long: the prices of %s are dropped", self._unevaluated[0][0].end)
        self._unevaluated.append(observations)

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
        wait = self._pace.refuse_until(error.retry_at)
        logger.warning("%s; not asking again for %d s", error, wait)
        self._note_error(error)

    def _note_error(self, error: UpstreamError) -> None:
        self._news |= {"last_error_at": self._clock.now(), "last_error": error.reason}
        self._holes.failed(error)


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
