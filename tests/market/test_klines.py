"""Candles: Bybit's rows without holes or repeats, final ones fetched once, and errors that say what to do."""

import asyncio
from collections import Counter
from itertools import pairwise
from typing import Any

import httpx
import pytest

from app.market.intervals import INTERVALS, number_at, start_of
from sandbox import candles as sandbox_candles
from sandbox.bybit import plain
from sandbox.candles import MINUTE_MS, Candle, to_ms
from sandbox.exchange import Exchange
from sandbox.faults import Fault
from tests.market.conftest import Serve
from tests.market.support import CANDLES, IMPATIENT, KEY, MarketCaller
from tests.support import ManualClock

COUNT = 10_000
PAGE = 1000


@pytest.fixture
def source(exchange: Exchange, clock: ManualClock) -> list[Candle]:
    """10,000 one-minute candles of BTCUSDT, the last one still open; oldest first."""
    last = to_ms(clock.now()) - MINUTE_MS * (COUNT - 1)
    made = [Candle(last + n * MINUTE_MS, 100.0 + n, 102.5 + n, 99.5 + n, 101.0 + n, 1.5) for n in range(COUNT)]
    exchange.market.load_candles("BTCUSDT", made)
    return made


def row_of(candle: Candle) -> list[str]:
    prices = [plain(price) for price in (candle.open, candle.high, candle.low, candle.close)]
    return [str(candle.start_ms), *prices, plain(candle.volume), plain(candle.volume * candle.close)]


def all_pages(market: MarketCaller, limit: int) -> list[list[str]]:
    """Page back from now on, as the docs tell callers to."""
    rows: list[list[str]] = []
    page = market.candles(symbol="BTCUSDT", interval="1", limit=limit)
    while page:
        rows += page
        page = market.candles(symbol="BTCUSDT", interval="1", limit=limit, end_time=int(page[-1][0]) - 1)
    return rows


@pytest.mark.parametrize("limit", [1000, 999])
def test_paging_equals_the_source_and_costs_nothing_twice(
    market: MarketCaller, exchange: Exchange, source: list[Candle], limit: int
) -> None:
    rows = all_pages(market, limit)
    assert rows == [row_of(candle) for candle in reversed(source)]
    calls = len(exchange.asked("/kline"))
    assert calls == -(-COUNT // limit) + 1  # the last one finds that there is no more
    assert all_pages(market, limit) == rows
    assert all_pages(market, 500) == rows
    assert len(exchange.asked("/kline")) == calls


def test_the_category_is_always_said(market: MarketCaller, exchange: Exchange) -> None:
    market.candles(symbol="btcusdt", interval="60")
    market.snapshot()
    assert {request.params["category"] for request in exchange.asked("/v5/")} == {"spot"}


def test_a_range_holds_the_candles_of_both_its_ends(market: MarketCaller, source: list[Candle]) -> None:
    start, end = source[100].start_ms + 30_000, source[110].start_ms + 1
    rows = market.candles(symbol="BTCUSDT", interval="1", start_time=start, end_time=end)
    assert rows == [row_of(candle) for candle in reversed(source[100:111])]
    since = market.candles(symbol="BTCUSDT", interval="1", start_time=source[-3].start_ms)
    assert since == [row_of(candle) for candle in reversed(source[-3:])]


def test_only_what_is_missing_is_fetched(market: MarketCaller, exchange: Exchange, source: list[Candle]) -> None:
    def ask(first: int, last: int) -> list[list[str]]:
        times = {"start_time": source[first].start_ms, "end_time": source[last].start_ms}
        return market.candles(symbol="BTCUSDT", interval="1", **times)

    ask(1000, 1100)
    ask(1200, 1300)
    exchange.forget_requests()
    assert ask(950, 1350) == [row_of(candle) for candle in reversed(source[950:1351])]
    asked = sorted((request.params["start"], request.params["limit"]) for request in exchange.asked("/kline"))
    assert asked == [
        (str(source[950].start_ms), "50"),
        (str(source[1101].start_ms), "99"),
        (str(source[1301].start_ms), "50"),
    ]


def test_the_open_candle_is_at_most_two_seconds_old(
    market: MarketCaller, exchange: Exchange, source: list[Candle], clock: ManualClock
) -> None:
    query: dict[str, Any] = {"symbol": "BTCUSDT", "interval": "1", "limit": 10}
    clock.advance(30)
    assert market.candles(**query)[0][4] == plain(source[-1].close)
    exchange.market.set_price("BTCUSDT", 77_777.0)
    clock.advance(1.9)
    assert market.candles(**query)[0][4] == plain(source[-1].close)
    assert len(exchange.asked("/kline")) == 1
    clock.advance(0.2)
    assert market.candles(**query)[0][4] == "77777"
    assert [request.params["limit"] for request in exchange.asked("/kline")] == ["10", "1"]


def test_a_candle_is_final_only_by_bybits_own_clock(
    market: MarketCaller, exchange: Exchange, source: list[Candle], clock: ManualClock
) -> None:
    """A candle seen while open is fetched once more when it has ended, and never again."""
    query: dict[str, Any] = {"symbol": "BTCUSDT", "interval": "1", "limit": 2}
    market.candles(**query)
    exchange.market.set_price("BTCUSDT", 88_888.0)
    clock.advance(62.5)
    assert [row[4] for row in market.candles(**query)] == ["88888", "88888"]
    exchange.forget_requests()
    clock.advance(3)
    market.candles(**query)
    assert [request.params["limit"] for request in exchange.asked("/kline")] == ["1"]


def test_candles_before_a_listing_are_not_asked_for_again_and_again(
    market: MarketCaller, exchange: Exchange, source: list[Candle]
) -> None:
    query: dict[str, Any] = {"symbol": "BTCUSDT", "interval": "1", "end_time": source[0].start_ms - 1}
    assert market.candles(**query) == market.candles(**query) == []
    assert len(exchange.asked("/kline")) == 1


def test_identical_requests_share_one_upstream_call(
    market: MarketCaller, exchange: Exchange, source: list[Candle]
) -> None:
    exchange.faults.add("/kline", Fault(delay_seconds=0.3))
    rows = asyncio.run(_ask_at_once(market, [{"limit": 500}] * 200))
    assert all(answer.json() == [row_of(candle) for candle in reversed(source[-500:])] for answer in rows)
    assert len(exchange.asked("/kline")) == 1


def test_overlapping_requests_share_what_they_have_in_common(
    market: MarketCaller, exchange: Exchange, source: list[Candle]
) -> None:
    exchange.faults.add("/kline", Fault(delay_seconds=0.3))
    windows = [{"start_time": source[n].start_ms, "end_time": source[n + 499].start_ms} for n in (2000, 2250, 2500)]
    answers = asyncio.run(_ask_at_once(market, windows))
    for answer, first in zip(answers, (2000, 2250, 2500), strict=True):
        assert answer.json() == [row_of(candle) for candle in reversed(source[first : first + 500])]
    assert sum(int(request.params["limit"]) for request in exchange.asked("/kline")) == 1000


def test_a_failure_is_shared_too(serve: Serve, exchange: Exchange) -> None:
    exchange.faults.add("/kline", Fault.hang())
    with serve(patience=IMPATIENT) as caller:
        answers = asyncio.run(_ask_at_once(caller, [{}] * 50))
    assert Counter(answer.status_code for answer in answers) == {504: 50}
    assert len(exchange.asked("/kline")) == 1


async def _ask_at_once(market: MarketCaller, queries: list[dict[str, Any]]) -> list[httpx.Response]:
    url = market.base_url + CANDLES
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=60, headers={"X-API-Key": KEY}) as client:
        common = {"symbol": "BTCUSDT", "interval": "1"}
        return await asyncio.gather(*(client.get(url, params=common | query) for query in queries))


FAULTS = {
    "dropped": (Fault.drop(), 502),
    "502 html": (Fault.html(502), 502),
    "200 html": (Fault.html(200), 502),
    "not json": (Fault.not_json(), 502),
    "truncated": (Fault.truncate(), 502),
    "cut off": (Fault.cut_off(), 502),
    "10016": (Fault.bybit(10016), 502),
    "10017": (Fault.bybit(10017), 502),
    "10001 parameter": (Fault.bybit(10001, "params error: interval"), 502),
    "other pair": (Fault.wrong_ids(), 502),
    "null prices": (Fault.price(None), 502),
    "number prices": (Fault.price(5), 502),
    "NaN prices": (Fault.price(float("nan")), 502),
    "zero prices": (Fault.price("0"), 502),
    "negative prices": (Fault.price("-1"), 502),
    "geo block": (Fault.geo_block(), 502),
    "10009": (Fault.bybit(10009), 502),
    "10024": (Fault.bybit(10024), 502),
    "hanging": (Fault.hang(), 504),
    "dripping": (Fault.drip(0.05), 504),
    "5004": (Fault.bybit(5004), 504),
    "10000": (Fault.bybit(10000), 504),
    "10006": (Fault.bybit(10006), 503),
    "429": (Fault.empty_429(), 503),
    "too frequent": (Fault.too_frequent(), 503),
    "10001": (Fault.bybit(10001), 404),
    "10029": (Fault.bybit(10029), 404),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_has_its_status_and_goes_by(
    serve: Serve, exchange: Exchange, clock: ManualClock, name: str
) -> None:
    fault, status = FAULTS[name]
    exchange.faults.add("/kline", fault)
    with serve(patience=IMPATIENT) as caller:
        answer = caller.get(CANDLES, symbol="BTCUSDT", interval="1")
        assert answer.status_code == status
        assert "Bybit" in answer.json()["detail"]
        assert ("Retry-After" in answer.headers) == (status == 503)
        exchange.faults.clear()
        clock.advance(601)
        assert caller.get(CANDLES, symbol="BTCUSDT", interval="1").status_code == 200


def test_what_is_known_is_served_while_bybit_is_down(
    market: MarketCaller, exchange: Exchange, source: list[Candle]
) -> None:
    query = {"symbol": "BTCUSDT", "interval": "1", "end_time": source[-10].start_ms}
    rows = market.candles(**query)
    exchange.faults.add("/v5/", Fault.drop())
    assert market.candles(**query) == rows


def test_a_geo_block_says_so_and_names_the_setting(market: MarketCaller, exchange: Exchange) -> None:
    exchange.faults.add("/kline", Fault.geo_block())
    for _ in range(3):
        answer = market.get(CANDLES, symbol="BTCUSDT", interval="1")
        assert answer.status_code == 502
        assert "country" in answer.json()["detail"]
        assert "BYBIT_URL" in answer.json()["detail"]
    assert len(exchange.asked("/kline")) == 1


def test_an_unknown_pair_is_named_and_asked_for_once(
    market: MarketCaller, exchange: Exchange, clock: ManualClock
) -> None:
    for _ in range(3):
        answer = market.get(CANDLES, symbol="nosuchusdt", interval="1")
        assert answer.status_code == 404
        assert "'NOSUCHUSDT'" in answer.json()["detail"]
    assert len(exchange.asked("/kline")) == 1
    exchange.market.add_pair("NOSUCHUSDT", "NOSUCH", "USDT")
    clock.advance(61)
    assert market.get(CANDLES, symbol="nosuchusdt", interval="1").status_code == 200


@pytest.mark.parametrize("symbol", ["BTC/USDT", "BTC USDT", "ÄÖÜ", "'; drop"])
def test_what_can_be_no_pair_is_not_asked_for(market: MarketCaller, exchange: Exchange, symbol: str) -> None:
    assert market.get(CANDLES, symbol=symbol, interval="1").status_code == 404
    assert exchange.requests == []


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"interval": "2"}, ["1, 3, 5, 15, 30, 60, 120, 240, 360, 720, D, W, M", "'2'"]),
        ({"interval": "d"}, ["720, D, W, M"]),
        ({"limit": 0}, ["1 to 1000"]),
        ({"limit": 1001}, ["1 to 1000"]),
        ({"limit": "many"}, ["valid integer"]),
        ({"start_time": 2, "end_time": 1}, ["start_time", "end_time", "after"]),
        ({"start_time": 0, "end_time": 1000 * 60_000}, ["1001 candles", "1000"]),
        ({"start_time": 0, "end_time": 10 * 60_000, "limit": 10}, ["11 candles", "`limit` (10"]),
        ({"start_time": 0}, ["candles", "limit"]),
        ({"start_time": -1}, ["start_time", "milliseconds"]),
        ({"end_time": 10**30}, ["end_time", "milliseconds"]),
    ],
)
def test_a_bad_question_is_answered_with_what_is_allowed(
    market: MarketCaller, exchange: Exchange, query: dict[str, Any], words: list[str]
) -> None:
    answer = market.get(CANDLES, **{"symbol": "BTCUSDT", "interval": "1"} | query)
    assert answer.status_code == 422
    assert all(word in str(answer.json()["detail"]) for word in words)
    assert exchange.requests == []


def test_empty_and_future_values_are_no_errors(market: MarketCaller, exchange: Exchange, clock: ManualClock) -> None:
    assert market.candles(symbol="BTCUSDT", interval="1", start_time="", end_time="", limit="")
    future = to_ms(clock.now()) + 3_600_000
    assert market.candles(symbol="BTCUSDT", interval="1", end_time=future)
    assert market.candles(symbol="BTCUSDT", interval="1", start_time=future) == []
    assert market.candles(symbol="BTCUSDT", interval="W", end_time=5) == []


@pytest.mark.parametrize("interval", INTERVALS)
def test_every_interval_has_bybits_candles(market: MarketCaller, source: list[Candle], interval: str) -> None:
    rows = market.candles(symbol="BTCUSDT", interval=interval, limit=8)
    starts = [int(row[0]) for row in rows]
    assert starts
    assert starts[0] == sandbox_candles.interval_start(source[-1].start_ms, interval)
    assert all(sandbox_candles.interval_start(later - 1, interval) == earlier for later, earlier in pairwise(starts))


@pytest.mark.parametrize("interval", INTERVALS)
def test_numbers_and_starts_of_candles_agree(interval: str) -> None:
    for at_ms in (0, 951_782_400_000, 1_709_251_199_999, 1_709_251_200_000, 1_772_366_400_000):
        number = number_at(at_ms, interval)
        assert start_of(number, interval) == sandbox_candles.interval_start(at_ms, interval)
        assert start_of(number, interval) <= at_ms < start_of(number + 1, interval)
