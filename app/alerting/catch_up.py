"""Wicks and holes: Bybit's one-minute candles cover every watched coin, from its oldest live alert on.

The watermark of a coin says up to where it was observed. It moves only after what lies before it was evaluated, so a
crash repeats work and skips none. One `tickers` call settles every coin whose targets lie outside its day's range.
"""

import logging
from collections.abc import Iterable
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from app.alerting.candles_first import CandlesFirst
from app.alerting.hole_filler import HoleFiller
from app.clock import Clock
from app.config import Settings
from app.database import coins, coverage, firings
from app.database.client import Document, SyncDB
from app.duty import Duty
from app.errors import (
    UnknownPairError,
    UpstreamBlockedError,
    UpstreamError,
    UpstreamThrottledError,
    UpstreamTimeoutError,
)
from app.market.bybit import Bybit
from app.market.pairs import DayRange, agree, day_ranges, pairs_by_coin
from app.metrics import Metrics
from app.spans import MINUTE, SETTLING, Span, ceil_to_minute, floor_to_minute

logger = logging.getLogger(__name__)

DAY_RANGE_COVERS = timedelta(hours=23)
"""How far back a ticker's 24-hour range is trusted to reach."""
TAKEOVER = timedelta(seconds=20)
"""After how long a silence another copy of the service takes over."""
COINS_AT_ONCE = 8
"""After an outage; it takes as long as Bybit takes to answer, divided by this."""
INSTRUMENTS_EVERY = timedelta(hours=1)
FAILURES_OF_ALL = 3
FAILS_ALL = (UpstreamThrottledError, UpstreamTimeoutError, UpstreamBlockedError)
"""After one of these, or that many others, Bybit is left alone until the next run."""


@dataclass(frozen=True, slots=True)
class CoinHole:
    """What was not observed of a coin yet, and the pair whose candles tell."""

    coin_id: int
    pair: str
    span: Span


class CatchUp:
    """Brings every watched coin's watermark up to the last closed minute. Belongs to one thread; close it from any."""

    def __init__(
        self,
        *,
        settings: Settings,
        database: SyncDB,
        bybit: Bybit,
        clock: Clock,
        candles_first: CandlesFirst,
        metrics: Metrics | None = None,
    ) -> None:
        self._settings = settings
        self._database = database
        self._bybit = bybit
        self._filler = HoleFiller(database=database, bybit=bybit, clock=clock, metrics=metrics)
        self._pool = ThreadPoolExecutor(COINS_AT_ONCE, "hole filler")
        self._candles_first = candles_first
        self._clock = clock
        self._done_up_to: datetime | None = None
        self._pairs: dict[str, str] = {}
        self._pairs_read_at: datetime | None = None
        self._duty = Duty("following of candles", database=database, clock=clock, length=TAKEOVER)

    def close(self) -> None:
        """Begin no more candles: a run that is under way ends with what it has asked for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def retire(self) -> None:
        """Let another copy follow the candles from now on. Raises PyMongoError."""
        self._duty.give_up()

    def run(self) -> int:
        """Evaluate what closed since the last run; returns how many alerts fired.

        Does nothing until another minute has closed. Raises UpstreamError when Bybit fails, PyMongoError when MongoDB
        does: the next run goes on from the watermarks.
        """
        up_to = floor_to_minute(self._clock.now() - SETTLING)
        if not self._duty.is_ours() or up_to == self._done_up_to:
            return 0
        watched = firings.watched_coins(self._database)
        coverage.forget_all_but(self._database, watched)
        with self._candles_first.trying():
            fired = self._cover(watched, up_to) if watched else 0
        self._done_up_to = up_to
        return fired

    def _cover(self, watched: Iterable[int], up_to: datetime) -> int:
        known = coverage.watermarks(self._database)
        behind = [mark for coin_id in watched if (mark := self._mark(known, coin_id)) and mark["watermark"] < up_to]
        if not behind:
            return 0
        rows, at_ms = self._bybit.tickers_at()
        days = day_ranges(rows)
        # A clock that is ahead of Bybit's would have the range of a minute that is not over yet stand for all of it.
        up_to = min(up_to, floor_to_minute(datetime.fromtimestamp(at_ms / 1000, UTC)))
        # Those that are least behind come first: one that fails again and again holds up no other.
        ordered = sorted(behind, key=_watermark, reverse=True)
        return self._fill_all([hole for mark in ordered if (hole := self._hole(mark, days, up_to))])

    def _fill_all(self, holes: list[CoinHole]) -> int:
        """Fill holes, several coins at a time. Raises UpstreamError when one could not be filled, after the others."""
        fired = 0
        failures: list[UpstreamError] = []
        fillings = [self._pool.submit(self._filler.fill, hole.coin_id, hole.pair, hole.span) for hole in holes]
        try:
            for hole, filling in zip(holes, fillings, strict=True):
                self._duty.is_ours()  # renews the lease: after an outage this takes a while
                try:
                    fired += filling.result()
                except CancelledError:
                    break
                except UnknownPairError as error:
                    logger.warning("coin %d can't be covered: %s", hole.coin_id, error)
                except UpstreamError as error:
                    logger.warning("coin %d waits for its candles: %s", hole.coin_id, error)
                    failures.append(error)
                    if len(failures) >= FAILURES_OF_ALL or isinstance(error, FAILS_ALL):
                        break
        finally:  # the next run must not find a coin still being filled
            wait([filling for filling in fillings if not filling.cancel()])
        if failures:
            raise failures[-1]
        return fired

    def _mark(self, known: dict[int, Document], coin_id: int) -> Document | None:
        """The coin's watermark; None when none of its live alerts wants candles."""
        if coin_id in known:
            return known[coin_id]
        since = firings.first_live_since(self._database, coin_id=coin_id)
        if since is None:
            return None
        return coverage.begin(self._database, coin_id=coin_id, at=ceil_to_minute(since))

    def _hole(self, mark: Document, days: dict[str, DayRange], up_to: datetime) -> CoinHole | None:
        """What candles must be asked for; None for a coin that its day's range settles, or that has no pair yet."""
        coin_id: int = mark["_id"]
        pair = mark.get("pair") or self._find_pair(coin_id, days)
        if pair is None:
            return None
        span = Span(mark["watermark"], up_to)
        if span.start >= span.end:
            return None
        day = days.get(pair)
        if day and up_to - span.start <= DAY_RANGE_COVERS and not self._touched(coin_id, day, up_to):
            coverage.advance(self._database, coin_id=coin_id, to=up_to)
            return None
        return CoinHole(coin_id, pair, span)

    def _touched(self, coin_id: int, day: DayRange, up_to: datetime) -> bool:
        return firings.is_any_touched(self._database, coin_id=coin_id, low=day.low, high=day.high, before=up_to)

    def _find_pair(self, coin_id: int, days: dict[str, DayRange]) -> str | None:
        """The pair with the coin's ticker, once its price agreed with CoinMarketCap's: tickers alone prove nothing."""
        coin = coins.find_coin(self._database, coin_id=coin_id)
        pair = self._pairs_now().get(coin["ticker"]) if coin else None
        if coin is None or pair is None or pair not in days or not self._is_fresh(coin):
            return None
        if not agree(days[pair].last, coin["price"]):
            return None
        coverage.use_pair(self._database, coin_id=coin_id, pair=pair)
        return pair

    def _pairs_now(self) -> dict[str, str]:
        now = self._clock.now()
        if self._pairs_read_at is None or now - self._pairs_read_at >= INSTRUMENTS_EVERY:
            self._pairs_read_at = now
            try:
                self._pairs = pairs_by_coin(self._bybit.instruments())
            except UpstreamError as error:
                logger.warning("coins without a pair wait: %s", error)
                self._pairs_read_at = now - INSTRUMENTS_EVERY + MINUTE
        return self._pairs

    def _is_fresh(self, coin: Document) -> bool:
        seen_at = coin.get("price_seen_at")
        limit = timedelta(seconds=self._settings.stale_after_seconds)
        return seen_at is not None and self._clock.now() - seen_at <= limit


def _watermark(mark: Document) -> datetime:
    moment: datetime = mark["watermark"]
    return moment
