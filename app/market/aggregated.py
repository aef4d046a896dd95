"""The join of Bybit's spot USDT pairs with CoinMarketCap's coins: by identity, never by ticker alone. All pure."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from app.errors import UpstreamError
from app.market.bybit import SOURCE, Row
from app.market.coinmarketcap_rows import Listing

QUOTE_COIN = "USDT"
COIN_ZONES = ("", "innovation", "adventure")
"""Bybit's `symbolType` of coins. Others are stocks, funds, commodities or currencies in the guise of a pair."""
NOT_TRADING = ("PreLaunch", "Delivering", "Closed")

AGREEMENT = 0.05
"""How far CoinMarketCap's price may lie from Bybit's for both to be the same coin's."""
LEAST_PRICED_SHARE = 0.9
"""Tickers that price fewer of the pairs than this are half a reply, not a market."""

NUMBER = re.compile(r"-?\d{1,40}(\.\d{1,40})?")
LOGO_URL = "https://s2.coinmarketcap.com/static/img/coins/64x64/{}.png"

BYBIT_FIELDS = ("currentPrice", "priceChange24hPcnt", "volume24h")
COIN_FIELDS = ("coinName", "coinLogoURL", "marketCapUSD", "marketCapRank")
FIELDS = ("coinName", *BYBIT_FIELDS, *COIN_FIELDS[1:])
"""Of each pair, in the order in which they are sent."""

Pair = dict[str, Any]
Figures = dict[str, Any]
NO_COIN: Figures = dict.fromkeys(COIN_FIELDS)


def bybit_figures(instruments: Iterable[Row], tickers: Iterable[Row]) -> tuple[dict[str, Figures], dict[str, str]]:
    """Return Bybit's figures of every spot USDT pair by its name, and the base coin of each, in alphabetical order.

    A figure that is missing or no number is None. Raises UpstreamError where the tickers price too few of the pairs.
    """
    bases = usdt_pairs(instruments)
    rows = {row["symbol"]: row for row in tickers if isinstance(row, dict) and isinstance(row.get("symbol"), str)}
    read = {pair: _read(rows.get(pair, {})) for pair in bases}
    priced = sum(row["currentPrice"] is not None for row in read.values())
    if not bases or priced < LEAST_PRICED_SHARE * len(bases):
        raise UpstreamError(SOURCE, f"its tickers price only {priced} of {len(bases)} USDT pairs")
    return read, bases


def match_coins(
    figures: Mapping[str, Figures], bases: Mapping[str, str], listings: Iterable[Listing]
) -> dict[str, Figures]:
    """Return CoinMarketCap's figures of every pair whose coin is among `listings`; the others are left out.

    A pair's coin has its base coin's ticker and a price within 5 % of the pair's. Where several do, the best-ranked
    one is meant: copies of a coin on other chains cost the same.
    """
    namesakes: defaultdict[str, list[Listing]] = defaultdict(list)
    for listing in listings:
        namesakes[listing.symbol.upper()].append(listing)
    found: dict[str, Figures] = {}
    for pair, base in bases.items():
        price = float(figures[pair]["currentPrice"] or "nan")
        agreeing = [coin for coin in namesakes[base.upper()] if abs(coin.price - price) <= AGREEMENT * price]
        if agreeing:
            found[pair] = _coin_figures(min(agreeing, key=_rank))
    return found


def join(figures: Mapping[str, Figures], coins: Mapping[str, Figures]) -> dict[str, Pair]:
    """Return the whole object: each pair's figures from both sides, nulls where no coin is known."""
    joined = {pair: own | coins.get(pair, NO_COIN) for pair, own in figures.items()}
    return {pair: {name: row[name] for name in FIELDS} for pair, row in joined.items()}


def coin_figures(pairs: Mapping[str, Pair]) -> dict[str, Figures]:
    """Return what an earlier join knew from CoinMarketCap, in the form of `match_coins`."""
    return {
        pair: {name: row[name] for name in COIN_FIELDS} for pair, row in pairs.items() if row["coinName"] is not None
    }


def usdt_pairs(instruments: Iterable[Row]) -> dict[str, str]:
    """The base coin of each pair that is a coin against USDT."""
    bases = {
        row["symbol"]: row["baseCoin"]
        for row in instruments
        if isinstance(row, dict)
        and row.get("quoteCoin") == QUOTE_COIN
        and (row.get("symbolType") or "") in COIN_ZONES
        and row.get("status") not in NOT_TRADING
        and isinstance(row.get("symbol"), str)
        and isinstance(row.get("baseCoin"), str)
    }
    return dict(sorted(bases.items()))


def _read(row: Row) -> Figures:
    price = _number(row.get("lastPrice"))
    return {
        "currentPrice": price if price and float(price) > 0 else None,
        "priceChange24hPcnt": _number(row.get("price24hPcnt")),
        "volume24h": _number(row.get("volume24h")),
    }


def _number(text: Any) -> str | None:
    return text if isinstance(text, str) and NUMBER.fullmatch(text) else None


def _coin_figures(coin: Listing) -> Figures:
    return {
        "coinName": coin.name,
        "coinLogoURL": LOGO_URL.format(coin.coin_id),
        "marketCapUSD": coin.market_cap,
        "marketCapRank": coin.rank,
    }


def _rank(coin: Listing) -> tuple[bool, int, int]:
    return coin.rank is None, coin.rank or 0, coin.coin_id
