"""CoinMarketCap on the wire: what is asked, how replies are read, and how long refusals silence us."""

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests
from bson import ObjectId

from app.database import alerts
from app.database.client import Document, SyncDB
from app.errors import UpstreamError, UpstreamTimeoutError
from app.market import http
from app.market.coinmarketcap import CoinMarketCap
from app.ticker import Ticker, get_bitcoin_price
from sandbox.exchange import Exchange
from sandbox.faults import Fault
from tests.support import SECRET, ManualClock, make_settings, make_ticker

QUOTES = "/quotes/latest"


@pytest.fixture
def exchange(clock: ManualClock) -> Iterator[Exchange]:
    """An exchange whose time is the test's."""
    with Exchange(now=clock.now) as running:
        yield running


@pytest.fixture
def client(exchange: Exchange, clock: ManualClock) -> Iterator[CoinMarketCap]:
    with closing(CoinMarketCap(base_url=exchange.url, api_key="", clock=clock)) as made:
        yield made


@pytest.fixture
def ticker(exchange: Exchange, database: SyncDB, client: CoinMarketCap, clock: ManualClock) -> Ticker:
    settings = make_settings(coinmarketcap_url=exchange.url, poll_seconds=20.0)
    return make_ticker(settings, database, client, clock)


@pytest.fixture
def arm(database: SyncDB, clock: ManualClock) -> Callable[..., Document]:
    def make(target: float, coin_id: int = 1, direction: Any = "above") -> Document:
        alert = alerts.new_alert(
            user_id=ObjectId(), email="a@example.com", coin={"_id": coin_id, "symbol": "X"}, target=target,
            direction=direction, touch=True, current_price=1.0, now=clock.now(),
        )  # fmt: skip
        database.alerts.insert_one(alert)
        return alert

    return make


def asked_ids(exchange: Exchange) -> list[list[int]]:
    return [[int(coin_id) for coin_id in asked.params["id"].split(",")] for asked in exchange.asked(QUOTES)]


def test_keyless_and_keyed_paths_and_headers(exchange: Exchange, clock: ManualClock) -> None:
    for key, path in (("", "/public-api/v3/cryptocurrency/quotes/latest"), ("k3y", "/v3/cryptocurrency/quotes/latest")):
        exchange.forget_requests()
        with closing(CoinMarketCap(base_url=exchange.url, api_key=key, clock=clock)) as client:
            (quote,) = client.quotes([1])
        (asked,) = exchange.requests
        assert asked.path == path
        assert asked.headers.get("x-cmc_pro_api_key", "") == key
        assert "k3y" not in str(asked.params)
        assert quote.price == exchange.market.coins[1].history.price


def test_a_poll_fills_watched_coins_up_to_what_one_credit_buys(
    ticker: Ticker, exchange: Exchange, arm: Callable[..., Document]
) -> None:
    for number in range(600):
        exchange.market.add_coin(50_000 + number, f"C{number}", f"Coin {number}", rank=1000 + number, price=1.0)
    ticker.poll()
    (ids,) = asked_ids(exchange)
    assert len(ids) == 250
    assert ids[:2] == [1, 1027]

    for number in range(290, 300):
        arm(5.0, coin_id=50_000 + number)
    exchange.forget_requests()
    ticker.poll()
    (ids,) = asked_ids(exchange)
    assert len(ids) == 250
    assert set(range(50_290, 50_300)) | {1, 1027} <= set(ids)

    for number in range(260):
        arm(5.0, coin_id=50_000 + number)
    exchange.forget_requests()
    ticker.poll()
    assert [len(ids) for ids in asked_ids(exchange)] == [250, 250]
    assert len({coin_id for ids in asked_ids(exchange) for coin_id in ids}) >= 270


def test_prices_are_stored_with_the_instant_they_were_seen(
    ticker: Ticker, exchange: Exchange, database: SyncDB, clock: ManualClock
) -> None:
    exchange.market.set_price(1, 101_000.0)
    ticker.poll()
    stored = database.coins.find_one({"_id": 1})
    assert stored is not None
    assert (stored["price"], stored["price_seen_at"]) == (101_000.0, clock.now())


def test_a_stale_price_is_no_observation(
    ticker: Ticker, exchange: Exchange, database: SyncDB, clock: ManualClock, arm: Callable[..., Document]
) -> None:
    """Invariant 6: staleness goes by the coin's own last_updated, and harms that coin alone."""
    arm(50_000.0)
    arm(1_000.0, coin_id=1027)
    clock.advance(1)
    exchange.market.set_price(1, 60_000.0, last_updated=clock.now() - timedelta(seconds=181))
    exchange.market.set_price(1027, 2_000.0, last_updated=clock.now() - timedelta(seconds=179))
    assert ticker.poll() == 1
    assert {alert["coin_id"] for alert in database.alerts.find({"status": "triggered"})} == {1027}
    stored = database.coins.find_one({"_id": 1})
    assert stored is not None
    assert "price" not in stored


@pytest.mark.parametrize(
    "fault",
    [Fault.price(value) for value in (None, 0, -5, float("nan"), float("inf"), "60000", True, {"price": 60_000})]
    + [Fault.wrong_ids(), Fault.html(200), Fault.html(503), Fault.not_json(), Fault.truncate(), Fault.cut_off()]
    + [Fault.drop(), Fault.cmc(500), Fault.cmc(401 + 600), Fault.cmc(1002), Fault.cmc(1004), Fault.cmc(1006)]
    + [
        Fault.changed(lambda body: body["data"]),
        Fault.changed(lambda body: {**body, "data": None}),
        Fault.changed(lambda body: {**body, "data": [None, 5, "x", [], {}]}),
        Fault.changed(
            lambda body: {**body, "data": [{**row, "quote": {"USD": row["quote"][0]}} for row in body["data"]]}
        ),
        Fault.changed(lambda body: {**body, "data": [{**row, "id": str(row["id"])} for row in body["data"]]}),
        Fault.changed(
            lambda body: {
                **body,
                "data": [{**row, "quote": [{**row["quote"][0], "symbol": "EUR"}]} for row in body["data"]],
            }
        ),
        Fault.changed(
            lambda body: {
                **body,
                "data": [{**row, "quote": [{**row["quote"][0], "last_updated": None}]} for row in body["data"]],
            }
        ),
    ],
)
def test_a_reply_that_is_wrong_fires_nothing_and_the_next_good_one_does(
    ticker: Ticker, exchange: Exchange, clock: ManualClock, arm: Callable[..., Document], fault: Fault
) -> None:
    """Invariants 6 and 7, for alerts in both directions."""
    arm(50_000.0)
    arm(40_000.0, direction="below")
    clock.advance(1)
    exchange.market.set_price(1, 60_000.0)
    exchange.faults.add(QUOTES, fault, times=1)
    assert ticker.poll() == 0
    clock.advance(20)
    assert ticker.poll() == 1


def test_a_row_about_a_coin_that_was_not_asked_for_is_left_out(client: CoinMarketCap, exchange: Exchange) -> None:
    """Invariant 6."""
    exchange.faults.add(
        QUOTES, Fault.changed(lambda body: {**body, "data": [*body["data"], {**body["data"][0], "id": 1027}]})
    )
    assert [quote.coin_id for quote in client.quotes([1])] == [1]


def test_one_broken_row_harms_no_other(ticker: Ticker, exchange: Exchange, clock: ManualClock, arm: Any) -> None:
    """Invariant 7: the broken coin's neighbours fire."""
    arm(50_000.0)
    arm(1_000.0, coin_id=1027)
    clock.advance(1)
    exchange.market.set_price(1027, 2_000.0)

    def break_bitcoin(body: Any) -> Any:
        return {**body, "data": [{"id": 1, "quote": "?"} if row["id"] == 1 else row for row in body["data"]]}

    exchange.faults.add(QUOTES, Fault.changed(break_bitcoin))
    assert ticker.poll() == 1


def test_one_refused_coin_is_left_out_and_harms_no_other(
    ticker: Ticker, exchange: Exchange, clock: ManualClock, arm: Any, database: SyncDB
) -> None:
    """Invariant 7: one bad id fails a whole call at CoinMarketCap, so it is dropped and the rest asked again."""
    arm(50_000.0)
    arm(1.0, coin_id=74)
    clock.advance(1)
    exchange.market.set_price(1, 60_000.0)
    refusal = '{"status": {"error_code": 400, "error_message": "Invalid value for \\"id\\": \\"74\\""}}'
    exchange.faults.add(QUOTES, Fault.answer(400, refusal, "application/json"), times=1)
    assert ticker.poll() == 1
    assert [74 in ids for ids in asked_ids(exchange)] == [True, False]
    ticker.poll()
    assert 74 not in asked_ids(exchange)[-1]


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        (Fault.cmc(1008), 29),  # to the next UTC minute: the clock stands at 12:00:31
        (Fault.cmc(1008, status=200, as_text=True), 29),
        (Fault.cmc(1009), 11 * 3600 + 59 * 60 + 29),  # to midnight
        (Fault.cmc(1010), 30 * 86_400 + 11 * 3600 + 59 * 60 + 29),  # to the first of April
        (Fault.cmc(1011), 60),
        (Fault.cmc(1011, headers={"Retry-After": "123"}), 123),
        (Fault.empty_429(), 60),
        (Fault.empty_429({"x-ratelimit-reset": "2026-03-01 12:05:31 +0000"}), 300),
        (Fault.cloudflare(), 60),
    ],
)
def test_a_limit_silences_us_for_as_long_as_it_says(
    ticker: Ticker, exchange: Exchange, clock: ManualClock, fault: Fault, seconds: int
) -> None:
    ticker.poll()
    clock.advance(31)
    exchange.faults.add(QUOTES, fault, times=1)
    ticker.poll()
    exchange.forget_requests()

    clock.advance(seconds - 1)
    ticker.poll()
    assert exchange.asked("/cryptocurrency/") == []
    clock.advance(1)
    ticker.poll()
    assert len(exchange.asked(QUOTES)) == 1


def test_limits_without_a_time_silence_us_ever_longer(ticker: Ticker, exchange: Exchange, clock: ManualClock) -> None:
    ticker.poll()
    exchange.faults.add(QUOTES, Fault.empty_429())
    for pause in (60, 120, 240, 480, 900, 900):
        exchange.forget_requests()
        ticker.poll()
        clock.advance(pause - 1)
        ticker.poll()
        assert len(exchange.asked(QUOTES)) == 1
        clock.advance(1)


def test_the_map_is_fetched_once_a_day(
    ticker: Ticker, exchange: Exchange, clock: ManualClock, database: SyncDB
) -> None:
    for _ in range(3):
        ticker.poll()
        clock.advance(20)
    assert len(exchange.asked("/cryptocurrency/map")) == 1
    assert database.coins.count_documents({"ticker": "UNI", "active": True}) == 2

    exchange.market.remove_coin(7083)
    clock.advance(86_400)
    ticker.poll()
    assert len(exchange.asked("/cryptocurrency/map")) == 2
    uniswap = database.coins.find_one({"_id": 7083})
    assert uniswap is not None
    assert uniswap["active"] is False


def test_a_map_of_many_pages_is_fetched_whole(exchange: Exchange, client: CoinMarketCap) -> None:
    for number in range(5100):
        exchange.market.add_coin(100_000 + number, f"M{number}", f"Many {number}", rank=5000 + number, price=1.0)
    mapped = client.map()
    assert len(mapped) > 5100
    assert mapped[0].symbol == "BTC"
    assert len(exchange.asked("/cryptocurrency/map")) == 2


def test_a_failing_map_keeps_prices_coming_and_is_not_asked_for_at_every_poll(
    ticker: Ticker, exchange: Exchange, clock: ManualClock, database: SyncDB
) -> None:
    exchange.faults.add("/cryptocurrency/map", Fault.html(502))
    for _ in range(6):
        ticker.poll()
        clock.advance(20)
    assert len(exchange.asked("/cryptocurrency/map")) == 2
    assert asked_ids(exchange) == [[1, 1027]] * 6
    assert database.coins.count_documents({"price": {"$exists": True}}) == 2


@pytest.mark.parametrize(
    "spoil", [{"name": "\ud800"}, {"symbol": "\ud800"}, {"rank": 10**30}, {"id": 10**30}, {"name": 5}]
)
def test_one_odd_row_of_the_map_stops_nothing(
    ticker: Ticker, exchange: Exchange, database: SyncDB, spoil: dict[str, Any]
) -> None:
    """Invariants 6 and 7: the other coins resolve, and prices keep coming."""

    def odd(body: Any) -> Any:
        return {**body, "data": [{**row, **spoil} if row["id"] == 74 else row for row in body["data"]]}

    exchange.faults.add("/cryptocurrency/map", Fault.changed(odd))
    ticker.poll()
    assert database.coins.count_documents({"ticker": "SOL", "active": True}) == 1
    assert len(exchange.asked(QUOTES)) == 1


@pytest.mark.parametrize("last_updated", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "now", 5, "\ud800"])
def test_one_odd_time_harms_no_other_coin(
    ticker: Ticker, exchange: Exchange, clock: ManualClock, arm: Callable[..., Document], last_updated: Any
) -> None:
    """Invariant 7."""
    arm(50_000.0)
    clock.advance(1)
    exchange.market.set_price(1, 60_000.0)

    def odd(body: Any) -> Any:
        for row in body["data"]:
            if row["id"] == 1027:
                row["quote"][0]["last_updated"] = last_updated
        return body

    exchange.faults.add(QUOTES, Fault.changed(odd))
    assert ticker.poll() == 1


@pytest.mark.parametrize(
    "status", [r'"error_code": 500, "error_message": "\ud800"', '"error_code": 1e999', '"error_code": 1e99999']
)
def test_odd_errors_are_errors_and_no_more(
    ticker: Ticker, exchange: Exchange, database: SyncDB, clock: ManualClock, status: str
) -> None:
    """Invariant 7: the next good reply is recorded as one."""
    exchange.faults.add(QUOTES, Fault.answer(200, f'{{"status": {{{status}}}}}', "application/json"), times=1)
    ticker.poll()
    clock.advance(20)
    ticker.poll()
    feed = database.feeds.find_one({"_id": "coinmarketcap"})
    assert feed is not None
    assert feed["last_good_at"] == clock.now()


@pytest.mark.parametrize(
    "headers",
    [{"Retry-After": "9" * 5000}, {"Retry-After": "99999999"}, {"x-ratelimit-reset": "9999-12-31 00:00:00 +0000"}],
)
def test_no_header_can_silence_us_for_longer_than_an_hour(
    ticker: Ticker, exchange: Exchange, clock: ManualClock, headers: dict[str, str]
) -> None:
    exchange.faults.add(QUOTES, Fault.empty_429(headers), times=1)
    ticker.poll()
    clock.advance(3600)
    exchange.forget_requests()
    ticker.poll()
    assert len(exchange.asked(QUOTES)) == 1


def test_a_silence_ends_in_time_when_the_wall_clock_is_set_back(
    ticker: Ticker, exchange: Exchange, clock: ManualClock
) -> None:
    exchange.faults.add(QUOTES, Fault.cmc(1008), times=1)
    ticker.poll()
    clock.step(-6 * 3600)
    clock.advance(60)
    exchange.forget_requests()
    ticker.poll()
    assert len(exchange.asked(QUOTES)) == 1


def test_a_refused_coin_is_asked_for_again_after_ten_minutes(
    ticker: Ticker, exchange: Exchange, clock: ManualClock, arm: Callable[..., Document]
) -> None:
    arm(50_000.0)
    clock.advance(1)
    refusal = r'{"status": {"error_code": 400, "error_message": "Invalid value for \"id\": \"1\""}}'
    exchange.faults.add(QUOTES, Fault.answer(400, refusal, "application/json"), times=1)
    exchange.market.set_price(1, 60_000.0)
    assert ticker.poll() == 0
    clock.advance(599)
    assert ticker.poll() == 0
    clock.advance(1)
    assert ticker.poll() == 1


def test_refusals_without_end_cost_three_calls(ticker: Ticker, exchange: Exchange) -> None:
    def refuse_first(_: Any) -> Any:
        first = exchange.asked(QUOTES)[-1].params["id"].split(",")[0]
        return {"status": {"error_code": 400, "error_message": f'Invalid value for "id": "{first}"'}}

    exchange.faults.add(QUOTES, Fault.changed(refuse_first))
    ticker.poll()
    assert len(exchange.asked(QUOTES)) == 3


def test_half_a_map_changes_nothing_and_is_not_asked_for_at_once(
    ticker: Ticker, exchange: Exchange, database: SyncDB, clock: ManualClock
) -> None:
    ticker.poll()
    active = database.coins.count_documents({"active": True})
    for rows in (0, 1):
        clock.advance(86_400)

        def cut(body: Any, rows: int = rows) -> Any:
            return {**body, "data": body["data"][:rows]}

        exchange.faults.add("/map", Fault.changed(cut))
        exchange.forget_requests()
        for _ in range(3):
            ticker.poll()
            clock.advance(19)
        assert len(exchange.asked("/map")) == 1
        assert database.coins.count_documents({"active": True}) == active
        exchange.faults.clear()


def test_a_limit_does_not_always_hit_the_same_coins(
    ticker: Ticker, exchange: Exchange, clock: ManualClock, arm: Callable[..., Document]
) -> None:
    """With two calls' worth of coins and one call a minute, both halves are polled in turn."""
    for number in range(300):
        exchange.market.add_coin(50_000 + number, f"C{number}", f"Coin {number}", rank=1000 + number, price=1.0)
        arm(5.0, coin_id=50_000 + number)
    ticker.poll()
    exchange.forget_requests()
    for _ in range(4):
        clock.advance(60)
        exchange.faults.clear()
        allowed = len(exchange.asked(QUOTES)) + 1

        def limit(body: Any, allowed: int = allowed) -> Any:
            over = len(exchange.asked(QUOTES)) > allowed
            return {"status": {"error_code": 1008, "error_message": "minute limit"}} if over else body

        exchange.faults.add(QUOTES, Fault.changed(limit))
        ticker.poll()
    served = asked_ids(exchange)[::2]
    assert len({tuple(ids) for ids in served}) == 2


def test_get_bitcoin_price(exchange: Exchange, monkeypatch: pytest.MonkeyPatch, clock: ManualClock) -> None:
    monkeypatch.setenv("COINMARKETCAP_URL", exchange.url)
    monkeypatch.setenv("COINMARKETCAP_API_KEY", "")
    monkeypatch.setenv("JWT_SECRET", SECRET)
    exchange.market.set_price(1, 98_765.43)
    assert get_bitcoin_price() == 98_765.43
    exchange.faults.add(QUOTES, Fault.price(None))
    with pytest.raises(UpstreamError, match="no usable price"):
        get_bitcoin_price()


def test_a_reply_that_never_ends_is_given_up(exchange: Exchange) -> None:
    """Invariant 7: a drip-fed reply passes every read time-out; the total deadline ends it."""
    exchange.faults.add("/map", Fault.drip(0.05))
    url = f"{exchange.url}/public-api/v1/cryptocurrency/map"
    with requests.Session() as session, pytest.raises(UpstreamTimeoutError):
        http.get(session, "coinmarketcap", url, {}, http.Patience(total=0.2))
    # The reply is far from complete: the server is still at it, and is told to stop by the closed connection.
    assert len(exchange.asked("/map")) == 1


def test_the_time_of_a_quote_is_read_as_utc(client: CoinMarketCap, exchange: Exchange) -> None:
    exchange.market.set_price(1, 5.0, last_updated=datetime(2026, 3, 1, 11, 59, 30, tzinfo=UTC))
    (quote,) = client.quotes([1])
    assert quote.last_updated == datetime(2026, 3, 1, 11, 59, 30, tzinfo=UTC)
