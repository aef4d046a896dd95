"""One-minute candles: read from a file, fed by trades, summed up to Bybit's thirteen intervals."""

import csv
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

MINUTE_MS = 60_000
DAY_MS = 1_440 * MINUTE_MS
WEEK_MS = 7 * DAY_MS
FIRST_MONDAY_MS = 4 * DAY_MS  # 1970-01-01 was a Thursday, weeks start on Mondays

FIXED_INTERVALS_MS = {
    name: minutes * MINUTE_MS
    for name, minutes in {
        **{str(n): n for n in (1, 3, 5, 15, 30, 60, 120, 240, 360, 720)},
        "D": 1_440,
    }.items()
}
INTERVALS = (*FIXED_INTERVALS_MS, "W", "M")
"""The names Bybit gives its thirteen intervals."""


class Candle(NamedTuple):
    """What a price did from `start_ms` (Unix time) on; `volume` counts coins."""

    start_ms: int
    open: float
    high: float
    low: float
    close: float
    volume: float = 0.0


class Day(NamedTuple):
    """The last 24 hours: `previous` is the price they began with, `turnover` is in the quote coin."""

    high: float
    low: float
    previous: float
    volume: float
    turnover: float


def to_ms(moment: datetime) -> int:
    """Unix milliseconds of an aware moment."""
    return round(moment.timestamp() * 1000)


def read_candles(path: Path | str) -> list[Candle]:
    """Candles of a CSV with the columns timestamp,open,high,low,close,volume; oldest first.

    Timestamps are ISO 8601 and UTC where they name no zone.
    """
    with Path(path).open(newline="") as file:
        return sorted(_candle_of(row) for row in csv.DictReader(file))


def _candle_of(row: dict[str, str]) -> Candle:
    moment = datetime.fromisoformat(row["timestamp"])
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    prices = (float(row[column]) for column in ("open", "high", "low", "close", "volume"))
    return Candle(to_ms(moment), *prices)


def interval_start(at_ms: int, interval: str) -> int:
    """When the candle of that interval which holds `at_ms` began (UTC, weeks on Mondays)."""
    if interval == "M":
        first = datetime.fromtimestamp(at_ms / 1000, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        return to_ms(first)
    if interval == "W":
        return at_ms - (at_ms - FIRST_MONDAY_MS) % WEEK_MS
    return at_ms - at_ms % FIXED_INTERVALS_MS[interval]


def merge(start_ms: int, candles: Iterable[Candle], flat: float) -> Candle:
    """One candle over several, oldest first; nothing traded makes a flat one at the price `flat`."""
    parts = list(candles) or [Candle(start_ms, flat, flat, flat, flat)]
    return Candle(
        start_ms,
        parts[0].open,
        max(part.high for part in parts),
        min(part.low for part in parts),
        parts[-1].close,
        sum(part.volume for part in parts),
    )


class Tick(NamedTuple):
    """A trade at `at_ms` (Unix time); `volume` counts coins."""

    at_ms: int
    price: float
    volume: float = 0.0


class History:
    """A price and the one-minute candles that led to it. Not thread-safe: the market locks around it."""

    def __init__(self, price: float, at_ms: int) -> None:
        self.price = price
        self._candles = [Candle(interval_start(at_ms, "1"), price, price, price, price)]
        self._feed: Iterator[Tick] = iter(())
        self._coming: Tick | None = None

    def trade(self, at_ms: int, price: float, volume: float = 0.0) -> None:
        """Move the price; a new minute opens at the price before, as Bybit's candles do."""
        last = self._candles[-1]
        start_ms = interval_start(at_ms, "1")
        if start_ms > last.start_ms:
            last = Candle(start_ms, self.price, self.price, self.price, self.price)
            self._candles.append(last)
        moved = Candle(at_ms, price, price, price, price, volume)
        self._candles[-1] = merge(last.start_ms, (last, moved), price)
        self.price = price

    def follow(self, ticks: Iterable[Tick]) -> None:
        """From now on the price follows these ticks, which come in time order; no ticks: it stands still."""
        self._feed = iter(ticks)
        self._coming = next(self._feed, None)

    def advance(self, now_ms: int) -> None:
        """Let every tick happen whose time has come."""
        while self._coming is not None and self._coming.at_ms <= now_ms:
            self.trade(*self._coming)
            self._coming = next(self._feed, None)

    def load(self, candles: Iterable[Candle], now_ms: int) -> None:
        """Replace the candles; the last close becomes the price. ValueError: none, or one of the future."""
        loaded = sorted(candles)
        if not loaded or loaded[-1].start_ms > now_ms:
            raise ValueError("history needs candles, and none that begin later than now")
        self._candles = loaded
        self.price = loaded[-1].close

    def rows(self, interval: str, start_ms: int | None, end_ms: int | None, limit: int, now_ms: int) -> list[Candle]:
        """Candles newest first, from the one that holds `start_ms` to the one that holds `end_ms` or now.

        Of a window with more than `limit` candles the newest are returned. Minutes without a trade are flat.
        """
        newest = interval_start(now_ms if end_ms is None else min(end_ms, now_ms), interval)
        oldest = interval_start(max(start_ms or 0, self._candles[0].start_ms), interval)
        starts: list[int] = []
        while newest >= oldest and len(starts) < limit:
            starts.append(newest)
            newest = interval_start(newest - 1, interval)
        return self._summed(starts[::-1], interval)[::-1]

    def _summed(self, starts: list[int], interval: str) -> list[Candle]:
        summed: list[Candle] = []
        for start_ms in starts:
            first = self._first_since(start_ms)
            flat = self._candles[first - 1].close if first else self._candles[0].open
            after = self._first_since(_next_start(start_ms, interval))
            summed.append(merge(start_ms, self._candles[first:after], flat))
        return summed

    def day(self, now_ms: int) -> Day:
        """High, low, first price and volume of the 24 hours before `now_ms`."""
        first = self._first_since(now_ms - DAY_MS)
        recent = self._candles[first:]
        previous = self._candles[first - 1].close if first else self._candles[0].open
        return Day(
            max((candle.high for candle in recent), default=self.price),
            min((candle.low for candle in recent), default=self.price),
            previous,
            sum(candle.volume for candle in recent),
            sum(candle.volume * candle.close for candle in recent),
        )

    def change_percent(self, minutes: int, now_ms: int) -> float:
        """How far the price is from what it was so many minutes ago, in percent."""
        first = self._first_since(now_ms - minutes * MINUTE_MS)
        before = self._candles[first - 1].close if first else self._candles[0].open
        return (self.price / before - 1) * 100 if before else 0.0

    def _first_since(self, at_ms: int) -> int:
        return bisect_left(self._candles, at_ms, key=lambda candle: candle.start_ms)


def _next_start(start_ms: int, interval: str) -> int:
    longest_ms = {"M": 32 * DAY_MS, "W": WEEK_MS}.get(interval) or FIXED_INTERVALS_MS[interval]
    return interval_start(start_ms + longest_ms, interval)
