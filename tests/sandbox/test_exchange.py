import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests

from sandbox.candles import Candle, read_candles
from sandbox.coins import Market
from sandbox.exchange import Exchange
from sandbox.faults import Fault
from sandbox.plan import Plan

QUOTES = "/v3/cryptocurrency/quotes/latest"
LISTINGS = "/v3/cryptocurrency/listings/latest"
MAP = "/v1/cryptocurrency/map"
INFO = "/v2/cryptocurrency/info"
TICKERS = "/v5/market/tickers"
KLINE = "/v5/market/kline"
INSTRUMENTS = "/v5/market/instruments-info"
KEY = {"X-CMC_PRO_API_KEY": "right"}

# Key sets of recorded answers (CoinMarketCap 2026-10-08, info 2024-01-16; Bybit's documentation 2026-07).
COIN_KEYS = {
    "tags", "id", "name", "symbol", "slug", "is_active", "infinite_supply", "is_fiat", "circulating_supply",
    "total_supply", "max_supply", "date_added", "num_market_pairs", "cmc_rank", "last_updated", "tvl_ratio", "platform",
    "self_reported_circulating_supply", "self_reported_market_cap", "minted_market_cap", "quote",
}  # fmt: skip
QUOTE_KEYS = {
    "id", "symbol", "price", "volume_24h", "volume_change_24h", "cex_volume_24h", "dex_volume_24h",
    "percent_change_1h", "percent_change_24h", "percent_change_7d", "percent_change_30d", "percent_change_60d",
    "percent_change_90d", "market_cap", "market_cap_dominance", "fully_diluted_market_cap", "minted_market_cap",
    "tvl", "last_updated",
}  # fmt: skip
INFO_KEYS = {
    "id", "name", "symbol", "category", "description", "slug", "logo", "subreddit", "notice", "tags", "tag-names",
    "tag-groups", "urls", "platform", "date_added", "twitter_username", "is_hidden", "date_launched",
    "contract_address", "self_reported_circulating_supply", "self_reported_tags", "self_reported_market_cap",
    "infinite_supply",
}  # fmt: skip
TICKER_KEYS = {
    "symbol", "bid1Price", "bid1Size", "ask1Price", "ask1Size", "lastPrice", "prevPrice24h", "price24hPcnt",
    "highPrice24h", "lowPrice24h", "turnover24h", "volume24h", "usdIndexPrice",
}  # fmt: skip
INSTRUMENT_KEYS = {
    "symbolId", "symbol", "baseCoin", "quoteCoin", "innovation", "status", "marginTrading", "stTag", "lotSizeFilter",
    "priceFilter", "riskParameters", "symbolType",
}  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.moment = datetime(2026, 10, 8, 12, 0, 30, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.moment

    def pass_(self, **span: float) -> None:
        self.moment += timedelta(**span)

    @property
    def minute_ms(self) -> int:
        return int(self.moment.replace(second=0, microsecond=0).timestamp() * 1000)


CLOCK = Clock()


@pytest.fixture(scope="module")
def server() -> Iterator[Exchange]:
    with Exchange(now=CLOCK, api_key="right") as exchange:
        yield exchange


@pytest.fixture
def exchange(server: Exchange) -> Iterator[Exchange]:
    CLOCK.moment = Clock().moment
    server.market.add_coin(1, "BTC", "Bitcoin", rank=1, price=100_000.0, pair="BTCUSDT", max_supply=21e6)
    server.market.add_pair("BTCEUR", "BTC", "EUR", coin_id=1, rate=0.86)
    server.plan.__init__()  # type: ignore[misc]
    server.forget_requests()
    yield server
    server.faults.clear()


def ask(exchange: Exchange, path: str, headers: dict[str, str] | None = None, **params: Any) -> requests.Response:
    return requests.get(exchange.url + path, params=params, headers=KEY if headers is None else headers, timeout=5)


def bybit(exchange: Exchange, path: str, **params: Any) -> Any:
    return ask(exchange, path, {}, **params).json()


def kline(exchange: Exchange, **params: Any) -> list[list[str]]:
    answer = bybit(exchange, KLINE, **{"category": "spot", "symbol": "BTCUSDT", **params})
    rows: list[list[str]] = answer["result"]["list"]
    return rows


def minutes(count: int, until_ms: int, price: float = 100.0) -> list[Candle]:
    starts = [until_ms - 60_000 * ago for ago in reversed(range(count))]
    return [Candle(start, price, price + 2, price - 1, price + 1, 1.0) for start in starts]
