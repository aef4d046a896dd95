"""CoinMarketCap's wire shapes over the market: quotes, listings, map, info and key info, with a key and without."""

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sandbox import coinmarketcap_rows as rows
from sandbox.coinmarketcap_rows import stamp
from sandbox.coins import Coin, Market, by_rank
from sandbox.error_bodies import COINMARKETCAP, coinmarketcap_body
from sandbox.plan import Plan

Params = Mapping[str, str]
KEYLESS = "/public-api"
QUOTE_AUX = (
    "num_market_pairs,cmc_rank,date_added,tags,platform,max_supply,circulating_supply,total_supply,is_active,is_fiat"
)
LISTING_AUX = QUOTE_AUX.removesuffix(",is_active,is_fiat")
MAP_AUX = "platform,first_historical_data,last_historical_data,is_active"


class RefusedError(Exception):
    """CoinMarketCap refuses the request with this code of its own."""

    def __init__(self, code: int, message: str | None = None) -> None:
        self.code = code
        self.http_status, usual = COINMARKETCAP[code]
        super().__init__(message or usual)


class Found(NamedTuple):
    """What an endpoint found: `total` is told in the status where the endpoint has pages."""

    data: Any
    credits: int
    total: int | None = None


class CoinMarketCap:
    """Answers for one market; with `api_key` None every key will do, but there must be one."""

    def __init__(self, market: Market, api_key: str | None, plan: Plan) -> None:
        self._market = market
        self._api_key = api_key
        self._plan = plan

    def answer(self, path: str, params: Params, key: str | None, now: datetime) -> tuple[int, Any]:
        """HTTP status and JSON body; `key` is what came in X-CMC_PRO_API_KEY."""
        as_text = "/v3/" in path
        try:
            keyless = path.startswith(KEYLESS + "/")
            if not keyless:
                self._check_key(key)
            found = self._find(path.removeprefix(KEYLESS), keyless, params, now)
        except RefusedError as refused:
            code = str(refused.code) if as_text else refused.code
            return refused.http_status, coinmarketcap_body(code, str(refused), stamp(now))
        if found is None:
            return 404, {"statusCode": 404, "error": "Not Found", "message": "Not Found"}
        return 200, {"data": found.data, "status": _status(found, as_text, now)}

    def _check_key(self, key: str | None) -> None:
        if not key:
            raise RefusedError(1002)
        if self._api_key not in (None, key):
            raise RefusedError(1001)

    def _find(self, path: str, keyless: bool, params: Params, now: datetime) -> Found | None:
        if path == "/v1/key/info" and not keyless:
            self._plan.charge(0, now)
            return Found(self._plan.shown(now), 0)
        if path not in ENDPOINTS:
            return None
        found = ENDPOINTS[path](self._market, params, now)
        if not keyless:
            self._plan.charge(found.credits, now)
        return found


def _status(found: Found, as_text: bool, now: datetime) -> dict[str, Any]:
    status = {"timestamp": stamp(now), "elapsed": 2, "credit_count": found.credits}
    status |= {"error_code": "0", "error_message": ""} if as_text else {"error_code": 0, "error_message": None}
    if not as_text:
        status["notice"] = None
    if found.total is not None:
        status["total_count"] = found.total
    return status


def _quotes(market: Market, params: Params, now: datetime) -> Found:
    coins = _asked_by_id(market, params)
    _check_convert(params)
    kept = _fields(params, QUOTE_AUX)
    worth = market.worth()
    found = [rows.quoted(coin, worth, now) for coin in coins]
    return Found([_without(row, QUOTE_AUX, kept) for row in found], _credits(len(found)))


def _listings(market: Market, params: Params, now: datetime) -> Found:
    ranked = [coin for coin in by_rank(market.coins.values()) if coin.active and coin.rank is not None]
    _check_convert(params)
    kept = _fields(params, LISTING_AUX)
    worth = market.worth()
    found = [rows.listed(coin, worth, now) for coin in _page(ranked, params, usual=100)]
    return Found([_without(row, QUOTE_AUX, kept) for row in found], _credits(len(found)), len(ranked))


def _map(market: Market, params: Params, now: datetime) -> Found:
    if "symbol" in params:  # the other options are ignored then, so inactive coins are told too
        coins = _asked_by_symbol(market, params["symbol"].split(","))
    else:
        wanted = {status == "active" for status in params.get("listing_status", "active").split(",")}
        coins = [coin for coin in market.coins.values() if coin.active in wanted]
        sort = params.get("sort", "id")
        if sort not in ("id", "cmc_rank"):
            raise _invalid("sort", sort)
        coins = by_rank(coins) if sort == "cmc_rank" else sorted(coins, key=lambda coin: coin.id)
        coins = _page(coins, params, usual=5000)
    kept = _fields(params, MAP_AUX)
    return Found([_without(rows.mapped(coin, now), MAP_AUX, kept) for coin in coins], 1)


def _info(market: Market, params: Params, now: datetime) -> Found:
    coins = _asked_by_id(market, params)
    return Found({str(coin.id): rows.described(coin) for coin in coins}, _credits(len(coins)))


ENDPOINTS: dict[str, Callable[[Market, Params, datetime], Found]] = {
    "/v3/cryptocurrency/quotes/latest": _quotes,
    "/v3/cryptocurrency/listings/latest": _listings,
    "/v1/cryptocurrency/map": _map,
    "/v2/cryptocurrency/info": _info,
}


def _asked_by_id(market: Market, params: Params) -> list[Coin]:
    if "id" not in params:
        raise RefusedError(400, '"value" must contain at least one of [id, slug, symbol]')
    ids = dict.fromkeys(params["id"].split(","))
    known = {str(coin_id): coin for coin_id, coin in market.coins.items()}
    unknown = [coin_id for coin_id in ids if coin_id not in known]
    if not all(coin_id.isdecimal() for coin_id in ids) or (unknown and params.get("skip_invalid") != "true"):
        raise _invalid("id", ",".join(unknown))
    return sorted((known[coin_id] for coin_id in ids if coin_id in known), key=lambda coin: coin.id)


def _asked_by_symbol(market: Market, symbols: list[str]) -> list[Coin]:
    unknown = set(symbols) - {coin.symbol for coin in market.coins.values()}
    if unknown:
        raise _invalid("symbol", ",".join(symbol for symbol in symbols if symbol in unknown))
    return by_rank(coin for coin in market.coins.values() if coin.symbol in symbols)


def _invalid(name: str, value: str) -> RefusedError:
    return RefusedError(400, f'Invalid value{"s" if "," in value else ""} for "{name}": "{value}"')


def _check_convert(params: Params) -> None:
    convert = params.get("convert", "USD")
    if "," in convert:
        raise RefusedError(400, "Your plan is limited to 1 convert options")
    if convert != "USD":
        raise _invalid("convert", convert)


def _page(coins: list[Coin], params: Params, usual: int) -> list[Coin]:
    start = _whole(params, "start", 1, math.inf)
    limit = _whole(params, "limit", usual, 5000)
    return coins[start - 1 : start - 1 + limit]


def _whole(params: Params, name: str, usual: int, most: float) -> int:
    text = params.get(name, str(usual))
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise _invalid(name, text)
    return int(text)


def _fields(params: Params, usual: str) -> set[str]:
    return set(params.get("aux", usual).split(","))


def _without(row: dict[str, Any], optional: str, kept: set[str]) -> dict[str, Any]:
    left_out = set(optional.split(",")) - kept
    return {name: value for name, value in row.items() if name not in left_out}


def _credits(coins: int) -> int:
    return max(1, math.ceil(coins / 250))
