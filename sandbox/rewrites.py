"""Ready-made changes to a true answer of either upstream, given and returned as parsed JSON."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sandbox.coinmarketcap_rows import stamp

Rewrite = Callable[[Any], Any]
PRICE_FIELDS = ("price", "lastPrice")
OPEN, HIGH, LOW, CLOSE = 1, 2, 3, 4


def with_price(value: Any) -> Rewrite:
    """Every price of quotes, listings and tickers, and all four of each candle, becomes `value`."""

    def rewrite(body: Any) -> Any:
        for row in _objects(body):
            row.update({name: value for name in PRICE_FIELDS if name in row})
        for bar in _bars(body):
            bar[OPEN : CLOSE + 1] = [value] * 4
        return body

    return rewrite


def aged(seconds: float) -> Rewrite:
    """Every `last_updated` lies so many seconds before the answer's own timestamp."""

    def rewrite(body: Any) -> Any:
        told = datetime.fromisoformat(body["status"]["timestamp"])
        for row in _objects(body):
            if "last_updated" in row:
                row["last_updated"] = stamp(told - timedelta(seconds=seconds))
        return body

    return rewrite


def of_others(body: Any) -> Any:
    """Ids of coins are moved out of the way, and pairs are called CANDYUSDT."""
    for row in _objects(body):
        if "slug" in row and "id" in row:
            row["id"] += 10_000_000
        if "symbol" in row and "slug" not in row and "id" not in row:
            row["symbol"] = "CANDYUSDT"
    return body


def _objects(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        return [value, *(found for part in value.values() for found in _objects(part))]
    if isinstance(value, list):
        return [found for part in value for found in _objects(part)]
    return []


def _bars(body: Any) -> list[list[Any]]:
    result = body.get("result") or {}
    return [row for row in result.get("list", []) if isinstance(row, list)]
