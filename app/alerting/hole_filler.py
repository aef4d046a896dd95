"""One hole of one coin: its candles are asked for, as few as will do, and evaluated, oldest first."""

import logging
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import attrgetter

from app.alerting import firing
from app.clock import Clock
from app.database import coverage, firings
from app.database.client import SyncDB
from app.database.coverage import Hole
from app.market.bybit import MOST_CANDLES, SOURCE, Bybit
from app.metrics import Metrics
from app.observations import Observation
from app.spans import MINUTE, Span, without

logger = logging.getLogger(__name__)

HOUR = timedelta(hours=1)
COARSE_FROM = timedelta(hours=3)
"""Holes of this length are searched by hourly candles first, for the hours in which something was touched."""
LATEST_CANDLE = timedelta(minutes=5)
"""A candle that is missing for longer than this will not come any more: its minute is listed as a hole."""
MINUTES_PER_CALL = MINUTE * (MOST_CANDLES - 1)
INTERVALS = {MINUTE: "1", HOUR: "60"}


@dataclass(frozen=True, slots=True)
class Filled:
    """How many alerts fired, and whether the whole span is done: its last candle may still be on its way."""

    fired: int
    is_whole: bool


class HoleFiller:
    """Fills holes with candles. May be used by several threads at once, for different coins."""

    def __init__(self, *, database: SyncDB, bybit: Bybit, clock: Clock, metrics: Metrics | None = None) -> None:
        self._database = database
        self._bybit = bybit
        self._clock = clock
        self._metrics = metrics

    def fill(self, coin_id: int, pair: str, hole: Span) -> int:
        """Evaluate a hole minute by minute, oldest first; hours in which nothing was touched are passed over whole."""
        if hole.end - hole.start < COARSE_FROM:
            return self._fill_minutes(coin_id, pair, hole).fired
        fired = 0
        for span in spans(hole, HOUR):
            hours = deque(self._candles(coin_id, pair, span, HOUR))
            while stretch := self._next_stretch(coin_id, hours, span):
                filled = self._fill_minutes(coin_id, pair, stretch)
                fired += filled.fired
                if not filled.is_whole:
                    return fired
                span = Span(stretch.end, span.end)
            coverage.advance(self._database, coin_id=coin_id, to=span.end)
        return fired

    def _next_stretch(self, coin_id: int, hours: deque[Observation], span: Span) -> Span | None:
        """The next minutes to ask for, as many as one call gives, from an hour that touched something or is missing.

        Takes the hours that it is done with off `hours`. An hour is looked at only once what lies before it was
        evaluated: an alert that fired by then is no reason to look on.
        """
        start = span.start
        while hours and hours[0].start <= start < span.end:
            hour = hours[0]
            if hour.end > start and self._touched(coin_id, hour.low, hour.high, hour.end):
                break
            start = max(start, hour.end)
            hours.popleft()
        if start >= span.end:
            return None
        return Span(start, min(start + MINUTES_PER_CALL, span.end))

    def _fill_minutes(self, coin_id: int, pair: str, hole: Span) -> Filled:
        fired = 0
        for span in spans(hole, MINUTE):
            minutes = self._minutes(coin_id, pair, span)
            telling = self._telling(coin_id, minutes)
            fired += firing.evaluate(self._database, telling, now=self._clock.now(), metrics=self._metrics)
            for missing in without(span, [Span(minute.start, minute.end) for minute in minutes]):
                if self._clock.now() - missing.end < LATEST_CANDLE:
                    coverage.advance(self._database, coin_id=coin_id, to=missing.start)
                    return Filled(fired, is_whole=False)
                self._record_hole(coin_id, missing, f"Bybit has no candles of {pair} for it")
            coverage.advance(self._database, coin_id=coin_id, to=span.end)
        return Filled(fired, is_whole=True)

    def _minutes(self, coin_id: int, pair: str, span: Span) -> list[Observation]:
        """The closed minutes of a span. What is missing is asked for once more: half a reply must not become a hole."""
        minutes = self._candles(coin_id, pair, span, MINUTE)
        missing = without(span, [Span(minute.start, minute.end) for minute in minutes])
        if missing and self._clock.now() - missing[0].end >= LATEST_CANDLE:
            known = {minute.start for minute in minutes}
            again = self._candles(coin_id, pair, Span(missing[0].start, missing[-1].end), MINUTE)
            minutes += [minute for minute in again if minute.start not in known]
            minutes.sort(key=attrgetter("start"))
        return minutes

    def _telling(self, coin_id: int, minutes: list[Observation]) -> list[Observation]:
        """Those of the minutes that can fire anything, of a thousand usually some dozens.

        Only one that is higher or lower than all before it can be the first to touch a target that was there before.
        """
        if not minutes:
            return []
        first, last = minutes[0].start, minutes[-1].start
        if firings.is_any_created(self._database, coin_id=coin_id, after=first, until=last):
            return minutes
        return extremes(minutes)

    def _record_hole(self, coin_id: int, hole: Span, reason: str) -> None:
        coverage.record_holes(self._database, [Hole(coin_id, SOURCE, hole.start, hole.end, reason)])
        logger.warning("coin %d was not observed from %s to %s: %s", coin_id, hole.start, hole.end, reason)

    def _candles(self, coin_id: int, pair: str, span: Span, width: timedelta) -> list[Observation]:
        """The closed candles of a span of at most 1,000, oldest first. Raises UpstreamError."""
        first, last = to_ms(span.start), to_ms(span.end) - 1
        reply = self._bybit.klines(pair, INTERVALS[width], first, last, MOST_CANDLES)
        seen = [_observation(coin_id, pair, row, width) for row in reversed(reply.rows)]
        return [candle for candle in seen if to_ms(candle.end) <= reply.at_ms and candle.start < span.end]

    def _touched(self, coin_id: int, low: float, high: float, before: datetime) -> bool:
        return firings.is_any_touched(self._database, coin_id=coin_id, low=low, high=high, before=before)


def spans(hole: Span, width: timedelta) -> list[Span]:
    """Cut a hole into pieces that one call can answer."""
    step = width * (MOST_CANDLES - 1)  # the first candle may begin before the hole
    pieces = []
    start = hole.start
    while start < hole.end:
        pieces.append(Span(start, min(start + step, hole.end)))
        start += step
    return pieces


def extremes(minutes: Iterable[Observation]) -> list[Observation]:
    """Return, in their order, those that went higher or lower than every one before them."""
    telling: list[Observation] = []
    low, high = math.inf, -math.inf
    for minute in minutes:
        if minute.low < low or minute.high > high:
            low, high = min(low, minute.low), max(high, minute.high)
            telling.append(minute)
    return telling


def to_ms(moment: datetime) -> int:
    """Unix milliseconds."""
    return int(moment.timestamp() * 1000)


def _observation(coin_id: int, pair: str, row: list[str], width: timedelta) -> Observation:
    start = datetime.fromtimestamp(int(row[0]) / 1000, UTC)
    first, high, low, close = (float(text) for text in row[1:5])
    return Observation(coin_id, start, start + width, first, low, high, close, SOURCE, pair)
