"""From CoinMarketCap's prices to fired alerts: `Ticker.poll()` is what the scheduler thread runs."""

import logging
import math
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
from app.market.quotes import Quotes
from app.metrics import Metrics
from app.observations import Observation

logger = logging.getLogger(__name__)

BITCOIN = 1
FIRST_PAUSE = timedelta(seconds=60)
LONGEST_PAUSE = timedelta(minutes=15)
POLLS_UNTIL_TAKEOVER = 3
"""After how many polls' silence another copy of the service takes over."""
POLLS_PER_MAP_TRY = 3
"""How many polls a map that could not be fetched is left alone for: it must not double the number of calls."""
PACE_CHANGE = 1.25
"""How much the pace of polling has to change, either way, to be worth a line in the log."""
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
        self._credits = credits_of_key
        self._poll_seconds = settings.poll_seconds
        self._polled_at = -math.inf
        self._clock = clock
        self._metrics = metrics or Metrics()
        self._polled_ids: list[int] = [coin["_id"] for coin in coins.ALWAYS_KNOWN]
        self._unevaluated: deque[list[Observation]] = deque(maxlen=MOST_UNEVALUATED)
        self._stored: deque[list[Observation]] = deque(maxlen=MOST_UNEVALUATED)
        self._candles_first = candles_first
        self._holes = PollHoles(database=database, clock=clock)
        self._silent_until = clock.monotonic()
        self._next_call = 0
        self._quotes = Quotes(client=client, clock=clock)
        self._pause = FIRST_PAUSE
        self._map_not_before = clock.monotonic()
        self._news: dict[str, Any] = {"poll_seconds": settings.poll_seconds, "budget": None}
        self._duty = Duty(
            "polling",
            database=database,
            clock=clock,
            length=timedelta(seconds=POLLS_UNTIL_TAKEOVER * settings.poll_seconds),
        )

    def mend_times(self) -> None:
        """Undo what a clock that was ahead has written. Raises PyMongoError."""
        mended = clock_repairs.undo_future(self._database, now=self._clock.now())
        if mended:
            logger.warning("%d times lay in the future: they are now", mended)

    def retire(self) -> None:
        """Let another copy poll from now on. Raises PyMongoError."""
        self._duty.give_up()

    def poll(self) -> int:
        """Ask for prices and evaluate them, if no other copy does; returns how many alerts fired.

        Never raises for what CoinMarketCap does. Raises PyMongoError while MongoDB is away: what was observed
        meanwhile is kept and evaluated, oldest first, by the next polls that reach it.
        """
        if self._duty.is_ours():
            self._observe()
        fired = self._evaluate_kept()
        if self._news:
            feeds.record(self._database, source=SOURCE, **self._news)
            self._news.clear()
        return fired

    def _evaluate_kept(self) -> int:
        """Evaluate what is kept, for as long as a poll may take: after an outage it must not keep us from observing."""
        deadline = time.monotonic() + LONGEST_EVALUATION_SECONDS
        self._store_kept()
        waiting = self._candles_first.waiting() if self._stored else set()
        fired = 0
        left: list[list[Observation]] = []
        try:
            while self._stored and time.monotonic() < deadline:
                observations = self._stored[0]
                fired += firing.evaluate(
                    self._database,
                    observations,
                    now=self._clock.now(),
                    candles_due=waiting,
                    metrics=self._metrics,
                )
                self._stored.popleft()
                left.append([seen for seen in observations if seen.coin_id in waiting])
        finally:
            self._stored.extendleft(later for later in reversed(left) if later)
        return fired

    def _store_kept(self) -> None:
        # Prices are stored before they are evaluated: an alert that is being created now either is seen by this
        # evaluation or, finding the newer price, restates its creation as later than it (see alerting/creation.py).
        if not self._unevaluated:
            return
        self._holes.record(self._unevaluated, poll_seconds=self._poll_seconds)
        latest = {seen.coin_id: seen for observations in self._unevaluated for seen in observations}
        coins.store_prices(self._database, latest.values())
        self._stored.extend(self._unevaluated)
        self._unevaluated.clear()

    def _observe(self) -> None:
        if self._clock.monotonic() < self._silent_until or not self._is_affordable():
            return
        self._polled_at = self._clock.monotonic()
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

    def _is_affordable(self) -> bool:
        """Whether a poll now lets the key's credits last; every `POLL_SECONDS` is what is tried."""
        self._credits.look(self._client)
        pace = self._credits.pace(calls=-(-len(self._polled_ids) // IDS_PER_CALL))
        usual = self._settings.poll_seconds
        if pace.seconds <= usual:
            self._go_at(usual, None)
            return True
        self._go_at(pace.seconds, f"polling every {pace.seconds:.0f} s instead of every {usual:g} s: {pace.reason}")
        return self._clock.monotonic() >= self._polled_at + pace.seconds

    def _go_at(self, seconds: float, budget: str | None) -> None:
        if not 1 / PACE_CHANGE < seconds / self._poll_seconds < PACE_CHANGE:
            logger.warning("%s", budget or f"polling every {seconds:g} s again: the key's credits last")
        if seconds != self._poll_seconds:
            self._poll_seconds = seconds
            self._news |= {"poll_seconds": seconds, "budget": budget}

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
        except (UpstreamThrottledError, PyMongoError):
            raise
        except UpstreamError as error:
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
        self._pause = FIRST_PAUSE
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
        """Wait as long as CoinMarketCap said, or ever longer where it named no time."""
        wait = error.retry_at - self._clock.now() if error.retry_at else self._pause
        if error.retry_at is None:
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
        self._silent_until = self._clock.monotonic() + wait.total_seconds()
        logger.warning("%s; not asking again for %d s", error, wait.total_seconds())
        self._metrics.polled("throttled")
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
