"""Which Bybit pair shows a coin's price, and what a day's ticker says of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from app.market.aggregated import AGREEMENT, usdt_pairs
from app.observations import usable_price


@dataclass(frozen=True, slots=True)
class DayRange:
    """A pair's last price and the range of its last 24 hours, in USDT."""

    last: float
    low: float
    high: float


def pairs_by_coin(instruments: Iterable[Any]) -> dict[str, str]:
    """Return the USDT pair of each coin's upper-case ticker; stocks and funds in the guise of pairs are left out."""
    return {base.upper(): pair for pair, base in usdt_pairs(instruments).items()}


def day_ranges(tickers: Iterable[Any]) -> dict[str, DayRange]:
    """Return the day of every pair whose row is sound: three positive prices, the last within the range."""
    found: dict[str, DayRange] = {}
    for row in tickers:
        if isinstance(row, dict) and isinstance(row.get("symbol"), str):
            last, low, high = (_price(row.get(name)) for name in ("lastPrice", "lowPrice24h", "highPrice24h"))
            if last and low and high and low <= last <= high:
                found[row["symbol"]] = DayRange(last, low, high)
    return found


def agree(one: float, other: float) -> bool:
    """Whether two prices can be the same coin's. Equal tickers can be different coins."""
    return abs(one - other) <= AGREEMENT * other


def _price(text: Any) -> float | None:
    try:
        return usable_price(float(text)) if isinstance(text, str) else None
    except ValueError:
        return None
