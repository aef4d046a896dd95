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
MAP_KEYS = {
    "id", "name", "symbol", "slug", "rank", "is_active", "first_historical_data", "last_historical_data", "platform",
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


# --- CoinMarketCap ---


def test_quotes_have_the_recorded_shape(exchange: Exchange) -> None:
    body = ask(exchange, QUOTES, id="1,1027").json()
    assert set(body) == {"data", "status"}
    assert set(body["data"][0]) == COIN_KEYS
    assert set(body["data"][0]["quote"][0]) == QUOTE_KEYS
    assert body["data"][0]["tags"] == [{"slug": "mineable", "name": "Mineable", "category": "OTHERS"}]
    assert (body["data"][0]["quote"][0]["id"], body["data"][0]["quote"][0]["symbol"]) == (2781, "USD")
    assert body["status"] == {
        "timestamp": "2026-10-08T12:00:30.000Z",
        "error_code": "0",
        "error_message": "",
        "elapsed": 2,
        "credit_count": 1,
    }


def test_a_price_is_always_from_now_unless_told_otherwise(exchange: Exchange) -> None:
    exchange.market.set_price(1, 101_000.5)
    CLOCK.pass_(seconds=90)
    quote = ask(exchange, QUOTES, id="1").json()["data"][0]["quote"][0]
    assert (quote["price"], quote["last_updated"]) == (101_000.5, "2026-10-08T12:02:00.000Z")
    exchange.market.set_price(1, 99_000, last_updated=datetime(2026, 10, 1, tzinfo=UTC))
    quote = ask(exchange, QUOTES, id="1").json()["data"][0]["quote"][0]
    assert (quote["price"], quote["last_updated"]) == (99_000, "2026-10-01T00:00:00.000Z")


def test_one_unknown_id_fails_the_batch_unless_it_may_be_skipped(exchange: Exchange) -> None:
    refused = ask(exchange, QUOTES, id="1,999999999")
    assert refused.status_code == 400
    assert set(refused.json()) == {"status"}
    assert refused.json()["status"]["error_message"] == 'Invalid value for "id": "999999999"'
    assert (refused.json()["status"]["error_code"], refused.json()["status"]["credit_count"]) == ("400", 0)
    skipped = ask(exchange, QUOTES, id="1,999999999", skip_invalid="true").json()
    assert [row["id"] for row in skipped["data"]] == [1]


@pytest.mark.parametrize(
    ("path", "params", "message"),
    [
        (QUOTES, {"id": "BTC"}, 'Invalid value for "id": "BTC"'),
        (QUOTES, {"id": "1", "convert": "USD,EUR"}, "Your plan is limited to 1 convert options"),
        (LISTINGS, {"limit": "5001"}, 'Invalid value for "limit": "5001"'),
        (LISTINGS, {"start": "0"}, 'Invalid value for "start": "0"'),
        (MAP, {"symbol": "YOOO"}, 'Invalid value for "symbol": "YOOO"'),
        (MAP, {"sort": "name"}, 'Invalid value for "sort": "name"'),
    ],
)
def test_a_bad_parameter_is_refused_by_name(
    exchange: Exchange, path: str, params: dict[str, Any], message: str
) -> None:
    refused = ask(exchange, path, **params)
    assert (refused.status_code, refused.json()["status"]["error_message"]) == (400, message)


@pytest.mark.parametrize(("headers", "code"), [({}, 1002), ({"X-CMC_PRO_API_KEY": "wrong"}, 1001)])
def test_a_missing_or_wrong_key_is_refused(exchange: Exchange, headers: dict[str, str], code: int) -> None:
    on_v1, on_v3 = ask(exchange, MAP, headers), ask(exchange, QUOTES, headers, id="1")
    assert (on_v1.status_code, on_v1.json()["status"]["error_code"]) == (401, code)
    assert (on_v3.status_code, on_v3.json()["status"]["error_code"]) == (401, str(code))


@pytest.mark.parametrize("path", [f"{QUOTES}?id=1", LISTINGS, MAP, f"{INFO}?id=1"])
def test_keyless_paths_answer_the_same_without_a_key(exchange: Exchange, path: str) -> None:
    assert ask(exchange, f"/public-api{path}", {}).json() == ask(exchange, path).json()


def test_key_info_has_no_keyless_path(exchange: Exchange) -> None:
    assert ask(exchange, "/public-api/v1/key/info", {}).status_code == 404


def test_listings_come_by_rank_and_page_by_page(exchange: Exchange) -> None:
    body = ask(exchange, LISTINGS, start=2, limit=3).json()
    assert [row["cmc_rank"] for row in body["data"]] == [2, 3, 4]
    assert body["status"]["total_count"] == 31
    assert set(body["data"][0]) == COIN_KEYS - {"is_active", "is_fiat"}
    assert body["data"][0]["tags"] == ["mineable"]


def test_a_shared_ticker_maps_to_three_coins_as_recorded(exchange: Exchange) -> None:
    body = ask(exchange, MAP, symbol="UNI").json()
    assert [(row["id"], row["rank"], row["is_active"]) for row in body["data"]] == [
        (7083, 21, 1), (33433, 3170, 1), (126, None, 0),
    ]  # fmt: skip
    listed, _, inactive = body["data"]
    assert set(listed) == MAP_KEYS
    assert set(listed["platform"]) == {"id", "name", "symbol", "slug", "token_address"}
    assert set(inactive) == set(listed) - {"first_historical_data", "last_historical_data"}
    assert (body["status"]["error_code"], body["status"]["error_message"]) == (0, None)


def test_the_map_lists_active_coins_by_id_or_by_rank(exchange: Exchange) -> None:
    ids = [row["id"] for row in ask(exchange, MAP).json()["data"]]
    assert (ids, 126 in ids) == (sorted(ids), False)
    ranked = ask(exchange, MAP, sort="cmc_rank", start=3, limit=2, aux="is_active").json()["data"]
    assert [set(row) for row in ranked] == [{"id", "name", "symbol", "slug", "rank", "is_active"}] * 2
    assert [row["rank"] for row in ranked] == [3, 4]
    assert [row["id"] for row in ask(exchange, MAP, listing_status="inactive").json()["data"]] == [126]


def test_info_is_keyed_by_id(exchange: Exchange) -> None:
    body = ask(exchange, INFO, id="1,74").json()
    assert set(body["data"]) == {"1", "74"}
    assert set(body["data"]["74"]) == INFO_KEYS
    assert body["data"]["74"]["logo"] == "https://s2.coinmarketcap.com/static/img/coins/64x64/74.png"


def test_key_info_counts_what_was_charged() -> None:
    clock = Clock()
    market = Market(clock)
    for coin_id in range(1, 301):
        market.add_coin(coin_id, f"C{coin_id}", f"Coin {coin_id}", rank=coin_id, price=1.0)
    with Exchange(market=market, plan=Plan(monthly_credits=15_000, used_this_month=100)) as exchange:
        charged = ask(exchange, QUOTES, id=",".join(str(coin_id) for coin_id in range(1, 252))).json()["status"]
        ask(exchange, f"/public-api{LISTINGS}", {})
        ask(exchange, QUOTES, id="999")
        told = ask(exchange, "/v1/key/info").json()
        clock.pass_(days=30)
        next_month = ask(exchange, "/v1/key/info").json()["data"]["usage"]
    assert charged["credit_count"] == 2
    assert told["data"] == {
        "plan": {
            "credit_limit_monthly": 15_000,
            "credit_limit_monthly_reset": "In 23 days, 11 hours, 59 minutes",
            "credit_limit_monthly_reset_timestamp": "2026-11-01T00:00:00.000Z",
            "rate_limit_minute": 30,
        },
        "usage": {
            "current_minute": {"requests_made": 2, "requests_left": 28},
            "current_day": {"credits_used": 2},
            "current_month": {"credits_used": 102, "credits_left": 14_898},
        },
    }
    assert (next_month["current_month"]["credits_used"], next_month["current_minute"]["requests_made"]) == (0, 1)


# --- Bybit ---


def test_tickers_have_the_documented_shape_and_only_strings(exchange: Exchange) -> None:
    body = bybit(exchange, TICKERS, category="spot", symbol="BTCUSDT")
    (row,) = body["result"]["list"]
    assert set(body) == {"retCode", "retMsg", "result", "retExtInfo", "time"}
    assert (set(row), {type(value) for value in row.values()}) == (TICKER_KEYS, {str})
    assert (body["result"]["category"], body["retCode"], body["time"]) == ("spot", 0, CLOCK.minute_ms + 30_000)


def test_tiny_prices_are_never_in_exponent_form(exchange: Exchange) -> None:
    rows = bybit(exchange, TICKERS, category="spot")["result"]["list"]
    assert {row["symbol"]: row["lastPrice"] for row in rows}["PEPEUSDT"] == "0.000006952"
    assert not [value for row in rows for name, value in row.items() if name != "symbol" and "e" in value.lower()]


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"category": "spot", "symbol": "NOSUCHUSDT"}, "Not supported symbols"),
        ({"category": "spot", "symbol": "btcusdt"}, "Not supported symbols"),
        ({"symbol": "BTCUSDT"}, "Illegal category"),
        ({"category": "linear", "symbol": "BTCUSDT"}, "Illegal category"),
    ],
)
@pytest.mark.parametrize("path", [TICKERS, KLINE, INSTRUMENTS])
def test_bybit_refuses_with_200_and_10001(exchange: Exchange, path: str, params: dict[str, Any], text: str) -> None:
    refused = ask(exchange, path, {}, interval="1", **params)
    assert (refused.status_code, refused.json()["retCode"], refused.json()["retMsg"]) == (200, 10001, text)


def test_a_wrong_path_is_404_and_10017(exchange: Exchange) -> None:
    refused = ask(exchange, "/v5/market/nothing", {})
    assert (refused.status_code, refused.json()["retCode"]) == (404, 10017)


def test_time_is_told_in_seconds_and_nanoseconds(exchange: Exchange) -> None:
    result = bybit(exchange, "/v5/market/time")["result"]
    assert result == {"timeSecond": str(CLOCK.minute_ms // 1000 + 30), "timeNano": f"{CLOCK.minute_ms + 30_000}000000"}


def test_instruments_name_base_and_quote_where_suffixes_mislead(exchange: Exchange) -> None:
    rows = {row["symbol"]: row for row in bybit(exchange, INSTRUMENTS, category="spot")["result"]["list"]}
    names = {symbol: (row["baseCoin"], row["quoteCoin"]) for symbol, row in rows.items()}
    assert (names["XUSDT"], names["BTCEUR"], names["ETHBTC"]) == (("X", "USDT"), ("BTC", "EUR"), ("ETH", "BTC"))
    assert set(rows["BTCUSDT"]) == INSTRUMENT_KEYS
    assert rows["BTCUSDT"]["priceFilter"] == {"tickSize": "1"}
    stocks = bybit(exchange, INSTRUMENTS, category="spot", symbolType="xstocks")["result"]["list"]
    assert [(row["symbol"], row["xstockMultiplier"]) for row in stocks] == [("AAPLXUSDT", "1")]


def test_a_price_moves_the_open_candle_and_the_other_pairs(exchange: Exchange) -> None:
    exchange.market.set_price(1, 101_000.0)
    exchange.market.set_price(1, 99_000.0)
    CLOCK.pass_(minutes=1)
    exchange.market.set_price(1, 99_500.5)
    newest, before = kline(exchange, interval="1", limit=2)
    assert newest == [str(CLOCK.minute_ms), "99000", "99500.5", "99000", "99500.5", "0", "0"]
    assert before[1:5] == ["100000", "101000", "99000", "99000"]
    in_euro = bybit(exchange, TICKERS, category="spot", symbol="BTCEUR")["result"]["list"][0]["lastPrice"]
    assert in_euro == "85570.43"


def test_minutes_without_a_trade_are_flat(exchange: Exchange) -> None:
    CLOCK.pass_(minutes=3)
    rows = kline(exchange, interval="1")
    assert [int(row[0]) for row in rows] == [CLOCK.minute_ms - 60_000 * ago for ago in range(4)]
    assert {tuple(row[1:5]) for row in rows} == {("100000",) * 4}


def test_a_flat_minute_stays_where_the_last_trade_before_it_was(exchange: Exchange) -> None:
    CLOCK.pass_(minutes=2)
    exchange.market.set_price(1, 120_000)
    rows = kline(exchange, interval="1")
    assert [row[1:5] for row in rows[1:]] == [["100000"] * 4] * 2
    assert rows[0][1:5] == ["100000", "120000", "100000", "120000"]


def test_kline_returns_the_newest_of_a_window_and_the_candle_that_holds_its_start(exchange: Exchange) -> None:
    exchange.market.load_candles("BTCUSDT", minutes(1_500, CLOCK.minute_ms))
    assert len(kline(exchange, interval="1")) == 200
    assert len(kline(exchange, interval="1", limit=1000)) == 1000
    end = CLOCK.minute_ms - 600_000
    assert [int(row[0]) for row in kline(exchange, interval="1", end=end, limit=2)] == [end, end - 60_000]
    window = kline(exchange, interval="1", start=end - 90_000, end=end + 1)
    assert [int(row[0]) for row in window] == [end, end - 60_000, end - 120_000]
    assert kline(exchange, interval="1", start=CLOCK.minute_ms + 60_000) == []


@pytest.mark.parametrize("limit", ["0", "1001"])
def test_kline_refuses_a_limit_out_of_range(exchange: Exchange, limit: str) -> None:
    answer = bybit(exchange, KLINE, category="spot", symbol="BTCUSDT", interval="1", limit=limit)
    assert answer["retCode"] == 10001


@pytest.mark.parametrize("interval", ["1", "3", "5", "15", "30", "60", "120", "240", "360", "720", "D", "W", "M"])
def test_every_interval_sums_up_the_same_minutes(exchange: Exchange, interval: str) -> None:
    loaded = minutes(3_000, CLOCK.minute_ms)
    exchange.market.load_candles("BTCUSDT", loaded)
    rows = kline(exchange, interval=interval, limit=1000)
    inside = [candle for candle in loaded if candle.start_ms >= int(rows[0][0])]
    assert rows[0][1:6] == ["100", "102", "99", "101", str(len(inside))]
    assert [int(row[0]) for row in rows] == sorted((int(row[0]) for row in rows), reverse=True)


@pytest.mark.parametrize(
    ("interval", "began"), [("240", "2026-10-08T12:00"), ("D", "2026-10-08"), ("W", "2026-10-05"), ("M", "2026-10-01")]
)
def test_long_candles_begin_where_the_calendar_says(exchange: Exchange, interval: str, began: str) -> None:
    start = datetime.fromisoformat(began).replace(tzinfo=UTC)
    assert int(kline(exchange, interval=interval)[0][0]) == start.timestamp() * 1000


def test_the_day_is_told_from_candles(exchange: Exchange) -> None:
    day_ago = CLOCK.minute_ms - 24 * 3_600_000
    old = Candle(day_ago - 60_000, 70, 500, 1, 80, 1.0)
    exchange.market.load_candles("BTCUSDT", [old, Candle(day_ago + 60_000, 80, 120, 60, 100, 2.0)])
    row = bybit(exchange, TICKERS, category="spot", symbol="BTCUSDT")["result"]["list"][0]
    assert (row["prevPrice24h"], row["highPrice24h"], row["lowPrice24h"]) == ("80", "120", "60")
    assert (row["price24hPcnt"], row["volume24h"], row["turnover24h"]) == ("0.25", "2", "200")
    quote = ask(exchange, QUOTES, id="1").json()["data"][0]["quote"][0]
    assert (quote["price"], quote["percent_change_24h"]) == (100, 25.0)


def test_bybit_bans_an_address_that_asks_too_often() -> None:
    with Exchange(bybit_limit=3) as exchange:
        statuses = [ask(exchange, "/v5/market/time").status_code for _ in range(4)]
        refused = ask(exchange, "/v5/market/time")
    assert statuses == [200, 200, 200, 403]
    assert refused.text == "403, access too frequent"


# --- prices that move ---


def test_a_replay_visits_every_high_and_low_as_time_passes(exchange: Exchange, tmp_path: Path) -> None:
    recorded = tmp_path / "candles.csv"
    recorded.write_text(
        "timestamp,open,high,low,close,volume\n"
        "2025-05-30 16:42:00+00:00,100,110,95,105,4\n2025-05-30 16:43:00,105,106,80,90,4\n"
    )
    exchange.market.replay(1, read_candles(recorded), speed=2.0)
    prices = []
    for _ in range(8):
        prices.append(ask(exchange, QUOTES, id="1").json()["data"][0]["quote"][0]["price"])
        CLOCK.pass_(seconds=7.5)
    assert prices == [100, 95, 110, 105, 105, 106, 80, 90]


def test_a_replay_nobody_watched_is_all_in_the_candles(exchange: Exchange) -> None:
    exchange.market.replay(1, [Candle(0, 100, 110, 95, 105, 4)], speed=60.0)
    CLOCK.pass_(seconds=20)
    assert kline(exchange, interval="1")[0][2:6] == ["100000", "95", "105", "4"]


def test_a_walk_is_the_same_for_the_same_seed(exchange: Exchange) -> None:
    def walked(seed: int) -> list[float]:
        prices = []
        exchange.market.set_price(1, 100_000.0)
        exchange.market.walk(1, step=0.01, seed=seed)
        for _ in range(5):
            CLOCK.pass_(seconds=1)
            prices.append(ask(exchange, QUOTES, id="1").json()["data"][0]["quote"][0]["price"])
        return prices

    first = walked(7)
    assert (walked(7), walked(8) == first, len(set(first))) == (first, False, 5)


def test_a_set_price_ends_a_walk(exchange: Exchange) -> None:
    exchange.market.walk(1)
    exchange.market.set_price(1, 5.0)
    CLOCK.pass_(minutes=1)
    assert ask(exchange, QUOTES, id="1").json()["data"][0]["quote"][0]["price"] == 5.0


# --- faults ---


def test_a_fault_lasts_as_often_as_it_was_added_for_keyed_and_keyless(exchange: Exchange) -> None:
    exchange.faults.add("/v3/cryptocurrency/quotes", Fault.cmc(1008), times=2)
    statuses = [ask(exchange, prefix + QUOTES, id="1").status_code for prefix in ("", "/public-api", "")]
    assert statuses == [429, 429, 200]
    exchange.faults.add(QUOTES, Fault.empty_429({"Retry-After": "7"}))
    refused = [ask(exchange, QUOTES, id="1") for _ in range(3)]
    assert [(answer.status_code, answer.text, answer.headers["Retry-After"]) for answer in refused] == [
        (429, "", "7"), (429, "", "7"), (429, "", "7"),
    ]  # fmt: skip
    assert ask(exchange, MAP).status_code == 200
    exchange.faults.clear()
    assert ask(exchange, QUOTES, id="1").status_code == 200


@pytest.mark.parametrize(
    ("code", "status"),
    [(400, 400), (500, 500), (1001, 401), (1002, 401), (1003, 402), (1004, 402), (1005, 403), (1006, 403), (1007, 403),
     (1008, 429), (1009, 429), (1010, 429), (1011, 429)],
)  # fmt: skip
def test_every_error_of_coinmarketcap_can_be_had(exchange: Exchange, code: int, status: int) -> None:
    exchange.faults.add(QUOTES, Fault.cmc(code))
    answer = ask(exchange, QUOTES, id="1")
    assert (answer.status_code, set(answer.json())) == (status, {"status"})
    assert set(answer.json()["status"]) == {
        "timestamp", "error_code", "error_message", "elapsed", "credit_count",
    }  # fmt: skip
    assert answer.json()["status"]["error_code"] == code


def test_a_throttle_code_may_come_with_200(exchange: Exchange) -> None:
    exchange.faults.add(QUOTES, Fault.cmc(1008, status=200, as_text=True))
    answer = ask(exchange, QUOTES, id="1")
    assert (answer.status_code, answer.json()["status"]["error_code"]) == (200, "1008")


@pytest.mark.parametrize("code", [5004, 7001, 10000, 10001, 10006, 10009, 10016, 10017, 10024, 10029])
def test_every_error_of_bybit_can_be_had(exchange: Exchange, code: int) -> None:
    exchange.faults.add("/v5/", Fault.bybit(code, headers={"X-Bapi-Limit-Reset-Timestamp": "1672738134824"}))
    answer = ask(exchange, TICKERS, category="spot")
    assert (answer.status_code, answer.json()["retCode"]) == (404 if code == 10017 else 200, code)
    assert answer.headers["X-Bapi-Limit-Reset-Timestamp"] == "1672738134824"


@pytest.mark.parametrize(
    ("fault", "status", "content_type", "text"),
    [
        (Fault.too_frequent(), 403, "text/plain", "access too frequent"),
        (Fault.geo_block(), 403, "text/html", "configured to block access from your country"),
        (Fault.cloudflare(), 429, "text/html", "Error 1015"),
        (Fault.html(), 502, "text/html", "502 Bad Gateway"),
        (Fault.html(200), 200, "text/html", "502 Bad Gateway"),
        (Fault.not_json(), 200, "application/json", "upstream says hello"),
        (Fault.answer(503), 503, "text/plain", ""),
    ],
)
def test_answers_that_are_no_json(exchange: Exchange, fault: Fault, status: int, content_type: str, text: str) -> None:
    exchange.faults.add("/", fault)
    answer = ask(exchange, QUOTES, id="1")
    assert (answer.status_code, answer.headers["Content-Type"].partition(";")[0]) == (status, content_type)
    assert text in answer.text
    with pytest.raises(requests.JSONDecodeError):
        answer.json()


def test_a_dropped_connection_has_no_answer(exchange: Exchange) -> None:
    exchange.faults.add(QUOTES, Fault.drop(), times=1)
    with requests.Session() as session:
        with pytest.raises(requests.ConnectionError):
            session.get(exchange.url + QUOTES, params={"id": "1"}, headers=KEY, timeout=5)
        assert session.get(exchange.url + QUOTES, params={"id": "1"}, headers=KEY, timeout=5).ok


def test_a_truncated_answer_is_half_of_the_true_one(exchange: Exchange) -> None:
    whole = ask(exchange, QUOTES, id="1").content
    exchange.faults.add(QUOTES, Fault.truncate())
    assert ask(exchange, QUOTES, id="1").content == whole[: len(whole) // 2]


def test_a_cut_off_answer_breaks_while_it_is_read(exchange: Exchange) -> None:
    exchange.faults.add(QUOTES, Fault.cut_off())
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        ask(exchange, QUOTES, id="1")


def test_a_dripped_answer_is_whole_in_the_end(exchange: Exchange) -> None:
    whole = ask(exchange, "/v5/market/time").json()
    exchange.faults.add("/v5/", Fault.drip(0.0))
    assert ask(exchange, "/v5/market/time").json() == whole


def test_a_hanging_answer_outlasts_its_client(exchange: Exchange) -> None:
    exchange.faults.add("/v5/", Fault.hang(30), times=1)
    with pytest.raises(requests.ReadTimeout):
        requests.get(exchange.url + "/v5/market/time", timeout=0.05)
    assert ask(exchange, "/v5/market/time").ok


@pytest.mark.parametrize("fault", [Fault.hang(30), Fault.drip(30)])
def test_answers_that_hang_do_not_hold_up_the_stop(fault: Fault) -> None:
    exchange = Exchange().start()
    exchange.faults.add("/v5/", fault)
    with ThreadPoolExecutor() as pool:
        hanging = pool.submit(ask, exchange, "/v5/market/time")
        while not exchange.requests:
            time.sleep(0.001)
        started = time.monotonic()
        exchange.stop()
        assert time.monotonic() - started < 2
        with pytest.raises(requests.RequestException):
            hanging.result()


@pytest.mark.parametrize("value", [None, 0, -1, "abc"])
def test_prices_can_be_rewritten(exchange: Exchange, value: object) -> None:
    exchange.market.add_pair("XUSDT", "X", "USDT", price=0.0421)
    exchange.faults.add("/", Fault.price(value))
    assert ask(exchange, QUOTES, id="1").json()["data"][0]["quote"][0]["price"] == value
    assert bybit(exchange, TICKERS, category="spot", symbol="XUSDT")["result"]["list"][0]["lastPrice"] == value
    assert kline(exchange, interval="1")[0][1:5] == [value] * 4


def test_a_price_can_be_the_bare_word_nan(exchange: Exchange) -> None:
    exchange.faults.add("/", Fault.price(float("nan")))
    assert '"price": NaN' in ask(exchange, QUOTES, id="1").text


def test_prices_can_be_stale(exchange: Exchange) -> None:
    exchange.faults.add("/", Fault.stale(3_600))
    row = ask(exchange, QUOTES, id="1").json()["data"][0]
    assert (row["last_updated"], row["quote"][0]["last_updated"]) == ("2026-10-08T11:00:30.000Z",) * 2


def test_rows_can_be_about_others(exchange: Exchange) -> None:
    exchange.faults.add("/", Fault.wrong_ids())
    row = ask(exchange, QUOTES, id="1").json()["data"][0]
    assert (row["id"], row["quote"][0]["id"]) == (10_000_001, 2781)
    rows = bybit(exchange, TICKERS, category="spot", symbol="BTCUSDT")["result"]["list"]
    assert rows[0]["symbol"] == "CANDYUSDT"


def test_any_change_of_the_true_answer(exchange: Exchange) -> None:
    exchange.faults.add("/v5/", Fault.changed(lambda body: body | {"result": None}))
    assert bybit(exchange, TICKERS, category="spot")["result"] is None


# --- what was asked, and control over HTTP ---


def test_no_request_is_lost_when_a_thousand_come_at_once(exchange: Exchange) -> None:
    def one(number: int) -> int:
        return ask(exchange, QUOTES, {"X-CMC_PRO_API_KEY": "right", "X-Number": str(number)}, id=str(1)).status_code

    with ThreadPoolExecutor(100) as pool:
        assert set(pool.map(one, range(1000))) == {200}
    assert {asked.headers["x-number"] for asked in exchange.requests} == {str(number) for number in range(1000)}


def test_requests_tell_path_parameters_and_time(exchange: Exchange) -> None:
    ask(exchange, TICKERS, {}, category="spot", symbol="BTCUSDT")
    ask(exchange, MAP)
    (asked,) = exchange.asked("/v5/")
    assert (asked.path, asked.params) == (TICKERS, {"category": "spot", "symbol": "BTCUSDT"})
    assert (asked.at, asked.headers["accept"]) == (CLOCK(), "*/*")


def test_control_over_http(exchange: Exchange) -> None:
    def post(path: str, order: dict[str, Any]) -> int:
        return requests.post(exchange.url + path, json=order, timeout=5).status_code

    assert post("/sandbox/price", {"symbol": "BTC", "price": 123}) == 200
    assert post("/sandbox/price", {"id": 7083, "price": 9.5}) == 200
    assert [row["quote"][0]["price"] for row in ask(exchange, QUOTES, id="1,7083").json()["data"]] == [123, 9.5]
    assert post("/sandbox/fault", {"path": "/v3/", "kind": "cmc", "code": 1010, "times": 5}) == 200
    assert ask(exchange, QUOTES, id="1").json()["status"]["error_code"] == 1010
    assert requests.delete(exchange.url + "/sandbox/faults", timeout=5).status_code == 204
    assert ask(exchange, QUOTES, id="1").ok
    told = requests.get(exchange.url + "/sandbox/requests", timeout=5).json()
    assert [request["path"] for request in told] == [QUOTES] * 3


@pytest.mark.parametrize(
    ("path", "order"),
    [
        ("/sandbox/price", {"symbol": "NOSUCH", "price": 1}),
        ("/sandbox/price", {"id": 1}),
        ("/sandbox/fault", {"kind": "nothing"}),
        ("/sandbox/fault", {"kind": "hang", "colour": "red"}),
    ],
)
def test_control_refuses_what_it_does_not_understand(exchange: Exchange, path: str, order: dict[str, Any]) -> None:
    refused = requests.post(exchange.url + path, data=json.dumps(order), timeout=5)
    assert (refused.status_code, set(refused.json())) == (400, {"detail"})
