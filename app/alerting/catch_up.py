"""Wicks and holes: Bybit's one-minute candles cover every watched coin, from its oldest live alert on.

The watermark of a coin says up to where it was observed. It moves only after what lies before it was evaluated, so a
crash repeats work and skips none. One `tickers` call settles every coin whose targets lie outside its day's range.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from app.alerting import firing
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
from app.market.bybit import MOST_CANDLES, SOURCE, Bybit
from app.market.pairs import DayRange, agree, day_ranges, pairs_by_coin
from app.observations import Observation

logger = logging.getLogger(__name__)

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
SETTLING = timedelta(seconds=5)
"""How long after a minute's end its candle is taken as final, and how far our clock may be ahead of Bybit's."""
DAY_RANGE_COVERS = timedelta(hours=23)
"""How far back a ticker's 24-hour range is trusted to reach."""
COARSE_FROM = timedelta(hours=3)
"""Holes of this length are searched by hourly candles first, for the hours in which something was touched."""
TAKEOVER = timedelta(seconds=90)
"""After how long a silence another copy of the service takes over; a minute is the pace at which it is renewed."""
INSTRUMENTS_EVERY = timedelta(hours=1)
LATEST_CANDLE = timedelta(minutes=5)
"""A candle that is missing for longer than this will not come any more: its minute is listed as a hole."""
FAILURES_OF_ALL = 3
FAILS_ALL = (UpstreamThrottledError, UpstreamTimeoutError, UpstreamBlockedError)
"""After one of these, or that many others, Bybit is left alone until the next run."""
INTERVALS = {MINUTE: "1", HOUR: "60"}


@dataclass(frozen=True, slots=True)
class Span:
    """From `start` up to, not including, `end`: both whole minutes in UTC."""

    start: datetime
    end: datetime


class CatchUp:
    """Brings every watched coin's watermark up to the last closed minute. Belongs to one thread."""

    def __init__(self, *, settings: Settings, database: SyncDB, bybit: Bybit, clock: Clock) -> None:
        self._settings = settings
        self._database = database
        self._bybit = bybit
        self._clock = clock
        self._done_up_to: datetime | None = None
        self._pairs: dict[str, str] = {}
        self._pairs_read_at: datetime | None = None
        self._duty = Duty("following of candles", database=database, clock=clock, length=TAKEOVER)

    def retire(self) -> None:
        """Let another copy follow the candles from now on. Raises PyMongoError."""
        self._duty.give_up()

    def run(self) -> int:
        """Evaluate what closed since the last run; returns how many alerts fired.

        Does nothing until another minute has closed. Raises UpstreamError when Bybit fails, PyMongoError when MongoDB
        does: the next run goes on from the watermarks.
        """
        up_to = floor_to_minute(self._clock.now() - SETTLING)
        if up_to == self._done_up_to or not self._duty.is_ours():
            return 0
        watched = firings.watched_coins(self._database)
        coverage.forget_all_but(self._database, watched)
        fired = self._cover(watched, up_to) if watched else 0
        self._done_up_to = up_to
        return fired

    def _cover(self, watched: Iterable[int], up_to: datetime) -> int:
        known = coverage.watermarks(self._database)
        behind = [mark for coin_id in watched if (mark := self._mark(known, coin_id)) and mark["watermark"] < up_to]
        if not behind:
            return 0
        days = day_ranges(self._bybit.tickers())
        fired = 0
        failures: list[UpstreamError] = []
        # Those that are least behind come first: one that fails again and again holds up no other.
        for mark in sorted(behind, key=_watermark, reverse=True):
            try:
                fired += self._cover_coin(mark, days, up_to)
            except UpstreamError as error:
                logger.warning("coin %d waits for its candles: %s", mark["_id"], error)
                failures.append(error)
                if len(failures) >= FAILURES_OF_ALL or isinstance(error, FAILS_ALL):
                    break
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

    def _cover_coin(self, mark: Document, days: dict[str, DayRange], up_to: datetime) -> int:
        """Bring one coin up; a coin without a pair of its own stays where it is until it has one."""
        coin_id: int = mark["_id"]
        pair = mark.get("pair") or self._find_pair(coin_id, days)
        if pair is None:
            return 0
        hole = Span(mark["watermark"], up_to)
        day = days.get(pair)
        if day and up_to - hole.start <= DAY_RANGE_COVERS and not self._touched(coin_id, day.low, day.high, up_to):
            coverage.advance(self._database, coin_id=coin_id, to=up_to)
            return 0
        try:
            return self._fill(coin_id, pair, hole)
        except UnknownPairError as error:
            logger.warning("coin %d can't be covered: %s", coin_id, error)
            return 0

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
            self._pairs = pairs_by_coin(self._bybit.instruments())
            self._pairs_read_at = now
        return self._pairs

    def _is_fresh(self, coin: Document) -> bool:
        seen_at = coin.get("price_seen_at")
        limit = timedelta(seconds=self._settings.stale_after_seconds)
        return seen_at is not None and self._clock.now() - seen_at <= limit

    def _touched(self, coin_id: int, low: float, high: float, before: datetime) -> bool:
        return firings.is_any_touched(self._database, coin_id=coin_id, low=low, high=high, before=before)

    def _fill(self, coin_id: int, pair: str, hole: Span) -> int:
        """Evaluate a hole minute by minute, oldest first; hours in which nothing was touched are passed over whole."""
        if hole.end - hole.start < COARSE_FROM:
            return self._fill_minutes(coin_id, pair, hole)
        fired = 0
        for span in spans(hole, HOUR):
            hours = self._candles(coin_id, pair, span, HOUR)
            for stretch in self._stretches(coin_id, hours, span):
                fired += self._fill_minutes(coin_id, pair, stretch)
            coverage.advance(self._database, coin_id=coin_id, to=span.end)
        return fired

    def _stretches(self, coin_id: int, hours: Sequence[Observation], span: Span) -> list[Span]:
        """The parts of `span` that minutes must be asked for: hours that touched something, and what no hour covers."""
        quiet = [hour for hour in hours if not self._touched(coin_id, hour.low, hour.high, hour.end)]
        return without(span, [Span(hour.start, hour.end) for hour in quiet])

    def _fill_minutes(self, coin_id: int, pair: str, hole: Span) -> int:
        fired = 0
        for span in spans(hole, MINUTE):
            minutes = self._candles(coin_id, pair, span, MINUTE)
            fired += firing.evaluate(self._database, minutes, now=self._clock.now())
            for missing in without(span, [Span(minute.start, minute.end) for minute in minutes]):
                if self._clock.now() - missing.end < LATEST_CANDLE:
                    coverage.advance(self._database, coin_id=coin_id, to=missing.start)
                    return fired
                self._record_hole(coin_id, missing, f"Bybit has no candles of {pair} for it")
            coverage.advance(self._database, coin_id=coin_id, to=span.end)
        return fired

    def _record_hole(self, coin_id: int, hole: Span, reason: str) -> None:
        coverage.record_hole(self._database, coin_id=coin_id, start=hole.start, end=hole.end, reason=reason)
        logger.warning("coin %d was not observed from %s to %s: %s", coin_id, hole.start, hole.end, reason)

    def _candles(self, coin_id: int, pair: str, span: Span, width: timedelta) -> list[Observation]:
        """The closed candles of a span of at most 1,000, oldest first. Raises UpstreamError."""
        first, last = to_ms(span.start), to_ms(span.end) - 1
        reply = self._bybit.klines(pair, INTERVALS[width], first, last, MOST_CANDLES)
        seen = [_observation(coin_id, pair, row, width) for row in reversed(reply.rows)]
        return [candle for candle in seen if to_ms(candle.end) <= reply.at_ms and candle.start < span.end]


def spans(hole: Span, width: timedelta) -> list[Span]:
    """Cut a hole into pieces that one call can answer."""
    step = width * (MOST_CANDLES - 1)  # the first candle may begin before the hole
    pieces = []
    start = hole.start
    while start < hole.end:
        pieces.append(Span(start, min(start + step, hole.end)))
        start += step
    return pieces


def without(span: Span, covered: Iterable[Span]) -> list[Span]:
    """Return what of `span` is left when `covered` (in order, not overlapping) is taken away."""
    left = []
    start = span.start
    for piece in covered:
        if piece.start > start:
            left.append(Span(start, min(piece.start, span.end)))
        start = max(start, piece.end)
    if start < span.end:
        left.append(Span(start, span.end))
    return left


def floor_to_minute(moment: datetime) -> datetime:
    """The whole minute that holds `moment`."""
    return moment.replace(second=0, microsecond=0)


def ceil_to_minute(moment: datetime) -> datetime:
    """The first whole minute at or after `moment`: a candle counts only if it began then or later."""
    floor = floor_to_minute(moment)
    return floor if floor == moment else floor + MINUTE


def to_ms(moment: datetime) -> int:
    """Unix milliseconds."""
    return int(moment.timestamp() * 1000)


def _watermark(mark: Document) -> datetime:
    moment: datetime = mark["watermark"]
    return moment


def _observation(coin_id: int, pair: str, row: list[str], width: timedelta) -> Observation:
    start = datetime.fromtimestamp(int(row[0]) / 1000, UTC)
    first, high, low, close = (float(text) for text in row[1:5])
    return Observation(coin_id, start, start + width, first, low, high, close, SOURCE, pair)
