"""What was seen of a coin's price: the one currency between whoever watches a market and whoever fires alerts."""

import math
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Observation:
    """From `start` to `end` (aware UTC) the coin's price in USD went from `first` to `close` between `low` and `high`.

    A poll sees an instant: `start == end`, and one price. A candle names its `pair`. Only alerts that existed at
    `start` may fire, and on a candle only those with `touch`.
    """

    coin_id: int
    start: datetime
    end: datetime
    first: float
    low: float
    high: float
    close: float
    source: str
    pair: str | None = None

    @classmethod
    def of_instant(cls, *, coin_id: int, at: datetime, price: float, source: str) -> "Observation":
        """Make the observation of one price at one moment."""
        return cls(coin_id=coin_id, start=at, end=at, first=price, low=price, high=price, close=price, source=source)


def usable_price(value: object) -> float | None:
    """Return the price as a double, or None for what must never fire anything.

    None, text, booleans, NaN, infinities, zero and negatives are not prices (invariant 6).
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        price = float(value)
    except OverflowError:
        return None
    return price if math.isfinite(price) and price > 0 else None
