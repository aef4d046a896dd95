"""The snapshot's life: one refresh for many callers, stale rather than nothing, nothing lost in a restart."""

import asyncio
from collections import Counter

import httpx
import pytest

from app.market import http
from sandbox.exchange import Exchange
from sandbox.faults import Fault
from tests.market.conftest import Serve
from tests.market.support import (
    BYBIT_PATHS,
    IMPATIENT,
    KEY,
    LISTINGS_PATH,
    ONE_EACH,
    SNAPSHOT,
    MarketCaller,
    upstream_calls,
)
from tests.support import ManualClock, wait_until

LIFETIME = 300
NEARLY_OVER = 250
"""Seconds of age at which a refresh begins, while the snapshot is still good."""

BYBIT_FAULTS = {
    "5004": Fault.bybit(5004),
    "10000": Fault.bybit(10000),
    "10001": Fault.bybit(10001),
    "10001 parameter": Fault.bybit(10001, "params error"),
    "10006": Fault.bybit(10006),
    "10006 with reset": Fault.bybit(10006, headers={"X-Bapi-Limit-Reset-Timestamp": "1772366405000"}),
    "10006 reset in the past": Fault.bybit(10006, headers={"X-Bapi-Limit-Reset-Timestamp": "1"}),
    "10009": Fault.bybit(10009),
    "10016": Fault.bybit(10016),
    "10017": Fault.bybit(10017),
    "10024": Fault.bybit(10024),
    "10029": Fault.bybit(10029),
    "too frequent": Fault.too_frequent(),
    "geo block": Fault.geo_block(),
    "429": Fault.empty_429(),
    "502 html": Fault.html(502),
    "500 html": Fault.html(500),
    "200 html": Fault.html(200),
    "not json": Fault.not_json(),
    "dropped": Fault.drop(),
    "truncated": Fault.truncate(),
    "cut off": Fault.cut_off(),
    "hanging": Fault.hang(),
    "null prices": Fault.price(None),
    "zero prices": Fault.price("0"),
    "text prices": Fault.price("abc"),
    "other pairs": Fault.wrong_ids(),
}
CMC_FAULTS = {
    str(code): Fault.cmc(code, as_text=True)
    for code in (400, 500, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1010, 1011)
} | {
    "1008 with 200": Fault.cmc(1008, status=200),
    "429 retry-after": Fault.empty_429({"Retry-After": "30"}),
    "cloudflare": Fault.cloudflare(),
    "502 html": Fault.html(502),
    "200 html": Fault.html(200),
    "not json": Fault.not_json(),
    "dropped": Fault.drop(),
    "truncated": Fault.truncate(),
    "cut off": Fault.cut_off(),
    "hanging": Fault.hang(),
    "null prices": Fault.price(None),
    "NaN prices": Fault.price(float("nan")),
    "zero prices": Fault.price(0),
    "negative prices": Fault.price(-1),
    "text prices": Fault.price("abc"),
    "one price for all": Fault.price(5),
}
BYBIT_CASES = [
    (fault, path) for fault in BYBIT_FAULTS for path in BYBIT_PATHS if "prices" not in fault or path.endswith("tickers")
]


def patience_for(fault: str) -> http.Patience:
    """Short only where an upstream hangs: elsewhere a busy machine must not look like one that does."""
    return IMPATIENT if fault in {"hanging", "dripping"} else http.PATIENCE


COIN_FIGURES = ("coinName", "coinLogoURL", "marketCapUSD", "marketCapRank")


def test_a_thousand_cold_callers_cost_one_call_to_each_endpoint(serve: Serve, exchange: Exchange) -> None:
    async def ask_all(url: str) -> Counter[int]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=60, headers={"X-API-Key": KEY}) as client:
            answers = await asyncio.gather(*(client.get(url) for _ in range(1000)))
        return Counter(answer.status_code for answer in answers)

    with serve() as caller:
        assert asyncio.run(ask_all(caller.base_url + SNAPSHOT)) == {200: 1000}
    assert upstream_calls(exchange) == ONE_EACH


def test_copies_of_the_service_share_one_refresh(serve: Serve, exchange: Exchange, clock: ManualClock) -> None:
    with serve() as one, serve() as other:
        first = one.get(SNAPSHOT)
        assert other.get(SNAPSHOT).headers["ETag"] == first.headers["ETag"]
        assert upstream_calls(exchange) == ONE_EACH
        clock.advance(NEARLY_OVER)
        renewed = one.until_refreshed(first.headers["ETag"])
        assert other.until_refreshed(first.headers["ETag"]).headers["ETag"] == renewed.headers["ETag"]
    assert upstream_calls(exchange) == dict.fromkeys(ONE_EACH, 2)


def test_a_restart_with_upstreams_down_serves_from_mongodb(
    serve: Serve, exchange: Exchange, clock: ManualClock
) -> None:
    with serve() as caller:
        before = caller.get(SNAPSHOT)
    exchange.stop()
    clock.advance(3600)
    with serve() as caller:
        after = caller.get(SNAPSHOT)
        assert after.json() == before.json()
        assert (after.headers["X-Snapshot-Stale"], after.headers["Age"]) == ("true", "3600")
        assert after.headers["Last-Modified"] == before.headers["Last-Modified"]


def test_a_refresh_begins_before_the_lifetime_ends_and_nobody_waits(
    market: MarketCaller, exchange: Exchange, clock: ManualClock
) -> None:
    first = market.get(SNAPSHOT)
    clock.advance(NEARLY_OVER - 50)
    market.get(SNAPSHOT)
    assert upstream_calls(exchange) == ONE_EACH
    exchange.market.set_price("BTCUSDT", 123_456.5)
    clock.advance(50)
    at_once = market.get(SNAPSHOT)
    assert (at_once.headers["ETag"], at_once.headers["Age"]) == (first.headers["ETag"], str(NEARLY_OVER))
    assert "X-Snapshot-Stale" not in at_once.headers
    renewed = market.until_refreshed(first.headers["ETag"])
    assert renewed.json()["BTCUSDT"]["currentPrice"] == "123456.5"
    assert renewed.headers["Age"] == "0"
    assert upstream_calls(exchange) == dict.fromkeys(ONE_EACH, 2)


def test_a_slow_refresh_is_not_joined_by_another(market: MarketCaller, exchange: Exchange, clock: ManualClock) -> None:
    first = market.get(SNAPSHOT)
    exchange.faults.add(BYBIT_PATHS[0], Fault(delay_seconds=0.5))
    clock.advance(NEARLY_OVER)
    market.get(SNAPSHOT)
    wait_until(lambda: len(exchange.asked(BYBIT_PATHS[0])) == 2)
    for _ in range(5):
        clock.advance(2)
        assert market.get(SNAPSHOT).headers["ETag"] == first.headers["ETag"]
    market.until_refreshed(first.headers["ETag"])
    assert upstream_calls(exchange) == dict.fromkeys(ONE_EACH, 2)


def test_nobody_asking_costs_nothing(market: MarketCaller, exchange: Exchange, clock: ManualClock) -> None:
    market.snapshot()
    clock.advance(10 * LIFETIME)
    market.get("/health")
    assert upstream_calls(exchange) == ONE_EACH


def test_a_stepped_wall_clock_ages_nothing(market: MarketCaller, exchange: Exchange, clock: ManualClock) -> None:
    market.snapshot()
    clock.step(86_400)
    assert market.get(SNAPSHOT).headers["Age"] == "0"
    assert upstream_calls(exchange) == ONE_EACH


@pytest.mark.parametrize(("fault", "path"), BYBIT_CASES)
def test_bybit_failing_before_the_first_fetch_is_a_503_that_asks_once(
    serve: Serve, exchange: Exchange, fault: str, path: str
) -> None:
    exchange.faults.add(path, BYBIT_FAULTS[fault])
    with serve(patience=patience_for(fault)) as caller:
        answers = [caller.get(SNAPSHOT) for _ in range(5)]
    assert {answer.status_code for answer in answers} == {503}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)
    assert all("Market data could not be fetched yet: Bybit" in answer.json()["detail"] for answer in answers)
    assert len(exchange.asked(path)) == 1
    assert exchange.asked(LISTINGS_PATH) == []


@pytest.mark.parametrize(("fault", "path"), BYBIT_CASES)
def test_bybit_failing_later_keeps_the_whole_snapshot(
    serve: Serve, exchange: Exchange, clock: ManualClock, fault: str, path: str
) -> None:
    with serve(patience=patience_for(fault)) as caller:
        first = caller.get(SNAPSHOT)
        exchange.faults.add(path, BYBIT_FAULTS[fault])
        clock.advance(LIFETIME + 5)
        caller.get(SNAPSHOT)
        wait_until(lambda: caller.get("/health").json()["upstreams"]["bybit"]["calls_today"] > 2)
        caller.settle()
        answers = [caller.get(SNAPSHOT) for _ in range(5)]
        assert all(answer.status_code == 200 and answer.json() == first.json() for answer in answers)
        assert {answer.headers["X-Snapshot-Stale"] for answer in answers} == {"true"}
        assert {answer.headers["Cache-Control"] for answer in answers} == {"private, max-age=0"}
    assert len(exchange.asked(path)) == 2
    assert len(exchange.asked(LISTINGS_PATH)) == 1


@pytest.mark.parametrize("fault", CMC_FAULTS)
def test_coinmarketcap_failing_at_first_leaves_nulls_and_is_tried_again(
    serve: Serve, exchange: Exchange, clock: ManualClock, fault: str
) -> None:
    exchange.faults.add(LISTINGS_PATH, CMC_FAULTS[fault])
    with serve(patience=patience_for(fault)) as caller:
        first = caller.get(SNAPSHOT)
        assert first.status_code == 200
        assert first.headers["X-Caps-Stale"] == "true"
        for row in first.json().values():
            assert float(row["currentPrice"]) > 0
            assert {row[name] for name in COIN_FIGURES} == {None}
        for _ in range(5):
            caller.get(SNAPSHOT)
        assert upstream_calls(exchange) == ONE_EACH
        exchange.faults.clear()
        clock.advance(32 * 86_400)
        caller.until_refreshed(first.headers["ETag"])
        assert caller.snapshot()["BTCUSDT"]["coinName"] == "Bitcoin"


@pytest.mark.parametrize("fault", CMC_FAULTS)
def test_coinmarketcap_failing_later_keeps_caps_and_logos_and_renews_prices(
    serve: Serve, exchange: Exchange, clock: ManualClock, fault: str
) -> None:
    with serve(patience=patience_for(fault)) as caller:
        first = caller.get(SNAPSHOT)
        exchange.faults.add(LISTINGS_PATH, CMC_FAULTS[fault])
        exchange.market.set_price("BTCUSDT", 150_000)
        clock.advance(NEARLY_OVER)
        renewed = caller.until_refreshed(first.headers["ETag"])
        expected = first.json()
        expected["BTCUSDT"]["currentPrice"] = "150000"
        expected["BTCUSDT"]["priceChange24hPcnt"] = renewed.json()["BTCUSDT"]["priceChange24hPcnt"]
        assert renewed.json() == expected
        assert renewed.headers["X-Caps-Stale"] == "true"
        assert "X-Snapshot-Stale" not in renewed.headers
        for _ in range(5):
            caller.get(SNAPSHOT)
    assert upstream_calls(exchange) == dict.fromkeys(ONE_EACH, 2)


def test_a_failure_is_repeated_ever_later(market: MarketCaller, exchange: Exchange, clock: ManualClock) -> None:
    exchange.faults.add("/v5/", Fault.html(502))
    waits = []
    for _ in range(6):
        answer = market.get(SNAPSHOT)
        waits.append(int(answer.headers["Retry-After"]))
        clock.advance(waits[-1])
    assert waits == [5, 10, 20, 40, 60, 60]
    assert len(exchange.asked(BYBIT_PATHS[0])) == 6
    exchange.faults.clear()
    assert market.get(SNAPSHOT).status_code == 200


def test_a_ban_by_bybit_outlives_a_restart(serve: Serve, exchange: Exchange, clock: ManualClock) -> None:
    exchange.faults.add("/v5/", Fault.too_frequent(), times=1)
    with serve() as caller:
        assert caller.get(SNAPSHOT).headers["Retry-After"] == "600"
    clock.advance(599)
    with serve() as caller:
        assert caller.get(SNAPSHOT).headers["Retry-After"] == "1"
        assert len(exchange.asked("/v5/")) == 1
        clock.advance(1)
        assert caller.get(SNAPSHOT).status_code == 200


def test_a_geo_block_names_the_setting(market: MarketCaller, exchange: Exchange) -> None:
    exchange.faults.add("/v5/", Fault.geo_block())
    answer = market.get(SNAPSHOT)
    assert answer.status_code == 503
    assert "BYBIT_URL" in answer.json()["detail"]
    assert "country" in answer.json()["detail"]


def test_half_a_market_never_replaces_a_whole_one(market: MarketCaller, exchange: Exchange, clock: ManualClock) -> None:
    first = market.get(SNAPSHOT)
    for symbol in list(exchange.market.pairs)[3:]:
        exchange.market.remove_pair(symbol)
    clock.advance(NEARLY_OVER)
    market.get(SNAPSHOT)
    wait_until(lambda: len(exchange.asked(BYBIT_PATHS[1])) == 2)
    market.settle()
    assert market.get(SNAPSHOT).json() == first.json()
    clock.advance(86_400)
    assert len(market.until_refreshed(first.headers["ETag"]).json()) == 3


def test_snapshots_leave_half_of_a_small_plan_to_the_alerts(
    serve: Serve, exchange: Exchange, clock: ManualClock
) -> None:
    """Prices are renewed all the same; 10,000 credits and a page of 20 make about three hours between caps."""
    with serve(coinmarketcap_api_key="a-key") as caller:
        etag = caller.get(SNAPSHOT).headers["ETag"]
        for number in range(10):
            clock.advance(LIFETIME + 5)
            exchange.market.set_price(1, 90_000.0 + number)
            etag = caller.until_refreshed(etag).headers["ETag"]
        assert len(exchange.asked(LISTINGS_PATH)) == 1
        assert caller.snapshot()["BTCUSDT"]["currentPrice"] == "90009"
        clock.advance(3 * 3600)
        etag = caller.until_refreshed(etag).headers["ETag"]
        assert len(exchange.asked(LISTINGS_PATH)) == 2
        exchange.plan.monthly_credits = 10_000_000
        exchange.market.set_price(1, 91_000.0)
        clock.advance(900)
        caller.until_refreshed(etag)
        assert len(exchange.asked(LISTINGS_PATH)) == 3
