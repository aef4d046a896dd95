"""Rows of CoinMarketCap's replies: what a sound one holds, and None for the others, so that one harms no other."""

import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from app.clock import parse_utc
from app.observations import usable_price

USD = "USD"


@dataclass(frozen=True, slots=True)
class Quote:
    """A coin's price in USD that is fit to fire alerts, and when CoinMarketCap last updated it (aware UTC)."""

    coin_id: int
    price: float
    last_updated: datetime


@dataclass(frozen=True, slots=True)
class MappedCoin:
    """An active coin of the map; `rank` is None for one without a rank."""

    coin_id: int
    symbol: str
    name: str
    rank: int | None


@dataclass(frozen=True, slots=True)
class Listing:
    """A coin of the listings: `price` and `market_cap` in USD, as CoinMarketCap sent them."""

    coin_id: int
    symbol: str
    name: str
    rank: int | None
    price: float
    market_cap: float | None


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What a key's plan carries, None where it doesn't say. `month_ends` (aware UTC) is when credits start anew."""

    month_left: int | None
    month_ends: datetime
    day_left: int | None
    calls_per_minute: int | None


def read_key_info(data: Any, now: datetime) -> KeyInfo:
    """Read the data of key info. A limit without what is left of it counts less what was used."""
    plan, usage = _part(data, "plan"), _part(data, "usage")
    ends = parse_utc(plan.get("credit_limit_monthly_reset_timestamp"))
    return KeyInfo(
        month_left=_left(_part(usage, "current_month"), plan.get("credit_limit_monthly")),
        month_ends=ends if ends and ends > now else next_month(now),
        day_left=_left(_part(usage, "current_day"), plan.get("credit_limit_daily")),
        calls_per_minute=_count(plan.get("rate_limit_minute")),
    )


def next_month(now: datetime) -> datetime:
    """The midnight (UTC) at which a free key's credits start anew."""
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1)


def read_quote(row: Any) -> Quote | None:
    """Read a row of quotes; None for one that is malformed or holds no usable price."""
    in_usd = _in_usd(row)
    if in_usd is None:
        return None
    price = usable_price(in_usd.get("price"))
    last_updated = parse_utc(in_usd.get("last_updated"))
    return Quote(row["id"], price, last_updated) if price and last_updated else None


def read_listing(row: Any) -> Listing | None:
    """Read a row of listings; None for one that is malformed or holds no usable price."""
    in_usd = _in_usd(row)
    price = usable_price(in_usd.get("price")) if in_usd else None
    symbol, name = (row.get("symbol"), row.get("name")) if in_usd else (None, None)
    if in_usd is None or price is None or not isinstance(symbol, str) or not isinstance(name, str):
        return None
    rank = row.get("cmc_rank")
    return Listing(
        row["id"],
        printable(symbol).strip(),
        printable(name)[:200],
        rank if is_id(rank) else None,
        price,
        _amount(in_usd.get("market_cap")),
    )


def _in_usd(row: Any) -> dict[str, Any] | None:
    """The one quote in USD of a row that is about a coin."""
    if not isinstance(row, dict) or not is_id(row.get("id")) or not isinstance(row.get("quote"), list):
        return None
    in_usd = [quote for quote in row["quote"] if isinstance(quote, dict) and quote.get("symbol") == USD]
    return in_usd[0] if len(in_usd) == 1 else None


def _amount(value: Any) -> float | None:
    """A number of dollars as it was sent; None for anything that JSON could not carry on."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value <= sys.float_info.max else None


def read_mapped_coin(row: Any) -> MappedCoin | None:
    """Read a row of the map; None for one that is malformed or of a coin that is not active."""
    if not isinstance(row, dict) or not is_id(row.get("id")) or row.get("is_active", 1) != 1:
        return None
    symbol, name, rank = row.get("symbol"), row.get("name"), row.get("rank")
    if not isinstance(name, str) or not isinstance(symbol, str) or not symbol.strip() or not symbol.isprintable():
        return None
    return MappedCoin(row["id"], symbol.strip()[:32], printable(name)[:200], rank if is_id(rank) else None)


def printable(text: str) -> str:
    """The text with a space for every character that is none, lone surrogates above all: UTF-8 can't carry those."""
    return "".join(character if character.isprintable() else " " for character in text)


def _part(whole: Any, name: str) -> dict[str, Any]:
    part = whole.get(name) if isinstance(whole, dict) else None
    return part if isinstance(part, dict) else {}


def _left(used: dict[str, Any], limit: object) -> int | None:
    left, most, spent = _count(used.get("credits_left")), _count(limit), _count(used.get("credits_used"))
    if left is None and most and spent is not None:
        return max(0, most - spent)
    return left


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def is_id(value: Any) -> bool:
    """Ids and ranks: positive whole numbers that MongoDB can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
