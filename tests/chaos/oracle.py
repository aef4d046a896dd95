"""What a price path alone says about an alert: when it is touched first, by a minute's candle and at an instant."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from app.database.client import Document
from app.spans import MINUTE, ceil_to_minute
from sandbox.candles import Candle

QUARTER = timedelta(seconds=15)


@dataclass(frozen=True)
class Touch:
    """A candle's minute and the extreme that reached the target."""

    at: datetime
    price: float


class Path:
    """One coin's price, minute by minute from `start` on: four ticks each, in the order in which they are replayed."""

    def __init__(self, start: datetime, candles: list[Candle]) -> None:
        self.start = start
        self.candles = candles

    @property
    def end(self) -> datetime:
        return self.start + len(self.candles) * MINUTE

    def price_at(self, moment: datetime) -> float:
        """The last tick up to then."""
        minute, within = divmod(moment - self.start, MINUTE)
        candle = self.candles[min(minute, len(self.candles) - 1)]
        turns = (candle.low, candle.high) if candle.close >= candle.open else (candle.high, candle.low)
        ticks = (candle.open, *turns, candle.close)
        return ticks[within // QUARTER] if minute < len(self.candles) else candle.close

    def first_touch(self, alert: Document) -> Touch | None:
        """The first candle that began after the alert was set and reached its target."""
        first = (ceil_to_minute(alert["created_at"]) - self.start) // MINUTE
        for number, candle in enumerate(self.candles[first:], start=first):
            price = candle.high if alert["direction"] == "above" else candle.low
            if reaches(alert, price):
                return Touch(self.start + number * MINUTE, price)
        return None


def reaches(alert: Document, price: float) -> bool:
    target: float = alert["target"]
    return price >= target if alert["direction"] == "above" else price <= target
