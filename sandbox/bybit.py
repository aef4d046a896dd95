"""Bybit v5's wire shapes over the market's spot pairs. Every price is a string, every error a retCode."""

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from sandbox.candles import INTERVALS, Candle, to_ms
from sandbox.coins import Market, Pair
from sandbox.error_bodies import BYBIT, bybit_body

Params = Mapping[str, str]
OUTSIDE_BOOK = 0.0001  # how far bid and ask lie from the last price


class RefusedError(Exception):
    """Bybit refuses the request with this retCode."""

    def __init__(self, code: int, message: str | None = None) -> None:
        self.code = code
        self.http_status, usual = BYBIT[code]
        super().__init__(message or usual)


def answer(market: Market, path: str, params: Params, now: datetime) -> tuple[int, Any]:
    """HTTP status and JSON body for a path under /v5/."""
    try:
        if path not in ENDPOINTS:
            raise RefusedError(10017)
        result = ENDPOINTS[path](market, params, now)
    except RefusedError as refused:
        return refused.http_status, bybit_body(refused.code, str(refused), to_ms(now))
    return 200, {"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": to_ms(now)}


def plain(number: float) -> str:
    """A number the way Bybit writes it: never an exponent, no zeros at the end."""
    text = format(Decimal(repr(number or 0.0)), "f")  # or: minus zero has no sign
    return text.rstrip("0").rstrip(".") if "." in text else text


def _time(_market: Market, _params: Params, now: datetime) -> dict[str, Any]:
    time_ms = to_ms(now)
    return {"timeSecond": str(time_ms // 1000), "timeNano": str(time_ms * 1_000_000)}


def _tickers(market: Market, params: Params, now: datetime) -> dict[str, Any]:
    return {"category": "spot", "list": [_ticker(pair, now) for pair in _asked(market, params)]}


def _instruments(market: Market, params: Params, _now: datetime) -> dict[str, Any]:
    wanted = params.get("symbolType")
    pairs = [pair for pair in _asked(market, params) if wanted in (None, pair.symbol_type)]
    return {"category": "spot", "list": [_instrument(number, pair) for number, pair in enumerate(pairs, start=1)]}


def _kline(market: Market, params: Params, now: datetime) -> dict[str, Any]:
    if "symbol" not in params:
        raise RefusedError(10001, "params error: symbol is required")
    (pair,) = _asked(market, params)
    interval = params.get("interval", "")
    if interval not in INTERVALS:
        raise RefusedError(10001, "Invalid period!")
    start_ms, end_ms = _whole(params, "start", None), _whole(params, "end", None)
    limit = _whole(params, "limit", 200)
    if limit is None or not 1 <= limit <= 1000:
        raise RefusedError(10001, "params error: limit")
    rows = pair.history.rows(interval, start_ms, end_ms, limit, to_ms(now))
    return {"category": "spot", "symbol": pair.symbol, "list": [_bar(row, pair) for row in rows]}


ENDPOINTS: dict[str, Callable[[Market, Params, datetime], dict[str, Any]]] = {
    "/v5/market/time": _time,
    "/v5/market/tickers": _tickers,
    "/v5/market/instruments-info": _instruments,
    "/v5/market/kline": _kline,
}


def _asked(market: Market, params: Params) -> Iterable[Pair]:
    if params.get("category", "linear") != "spot":  # the sandbox has spot only
        raise RefusedError(10001, "Illegal category")
    if "symbol" not in params:
        return list(market.pairs.values())
    if params["symbol"] not in market.pairs:
        raise RefusedError(10001)
    return [market.pairs[params["symbol"]]]


def _whole(params: Params, name: str, usual: int | None) -> int | None:
    text = params.get(name)
    if text is None:
        return usual
    if not text.isdecimal():
        raise RefusedError(7001)
    return int(text)


def _ticker(pair: Pair, now: datetime) -> dict[str, Any]:
    day = pair.history.day(to_ms(now))
    price = pair.price
    change = pair.history.price / day.previous - 1 if day.previous else 0.0
    return {
        "symbol": pair.symbol,
        "bid1Price": plain(float(f"{price * (1 - OUTSIDE_BOOK):.8g}")),
        "bid1Size": "2",
        "ask1Price": plain(float(f"{price * (1 + OUTSIDE_BOOK):.8g}")),
        "ask1Size": "1.862172",
        "lastPrice": plain(price),
        "prevPrice24h": plain(pair.priced(day.previous)),
        "price24hPcnt": plain(round(change, 4)),
        "highPrice24h": plain(pair.priced(day.high)),
        "lowPrice24h": plain(pair.priced(day.low)),
        "turnover24h": plain(pair.priced(day.turnover)),
        "volume24h": plain(round(day.volume, 6)),
        "usdIndexPrice": "" if pair.symbol_type else plain(pair.history.price),
    }


def _bar(candle: Candle, pair: Pair) -> list[str]:
    prices = [plain(pair.priced(price)) for price in (candle.open, candle.high, candle.low, candle.close)]
    turnover = pair.priced(candle.volume * candle.close)
    return [str(candle.start_ms), *prices, plain(round(candle.volume, 6)), plain(turnover)]


def _instrument(number: int, pair: Pair) -> dict[str, Any]:
    row: dict[str, Any] = {
        "symbolId": number,
        "symbol": pair.symbol,
        "baseCoin": pair.base,
        "quoteCoin": pair.quote,
        "innovation": "0",
        "status": "Trading",
        "marginTrading": "none" if pair.symbol_type else "utaOnly",
        "stTag": "0",
        "lotSizeFilter": {
            "basePrecision": "0.000001",
            "quotePrecision": "0.0000001",
            "minOrderQty": "0.000011",
            "maxOrderQty": "83",
            "minOrderAmt": "5",
            "maxOrderAmt": "8000000",
            "maxLimitOrderQty": "83",
            "maxMarketOrderQty": "41.5",
            "postOnlyMaxLimitOrderSize": "60000",
        },
        "priceFilter": {"tickSize": _tick_size(pair.price)},
        "riskParameters": {"priceLimitRatioX": "0.005", "priceLimitRatioY": "0.01"},
        "symbolType": pair.symbol_type,
    }
    if pair.xstock_multiplier is not None:
        row["xstockMultiplier"] = pair.xstock_multiplier
    return row


def _tick_size(price: float) -> str:
    digits_before_point = math.floor(math.log10(price)) if price > 0 else 0
    return plain(float(f"1e{digits_before_point - 5}"))  # prices have six digits that count
