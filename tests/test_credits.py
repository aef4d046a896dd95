"""A key's credits: polling is stretched to what the plan carries, and no further."""

import logging
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.alerting.poll_holes import longest_gap
from app.database.client import SyncDB
from app.market.coinmarketcap import CoinMarketCap
from app.market.coinmarketcap_rows import read_key_info
from app.market.credits import Credits
from app.market.meter import Meter
from app.ticker import Ticker
from sandbox.exchange import Exchange
from sandbox.faults import Fault
from tests.support import ManualClock, make_settings, make_ticker

QUOTES, KEY_INFO = "/quotes/latest", "/v1/key/info"
HOUR = 3600


@pytest.fixture
def exchange(clock: ManualClock) -> Iterator[Exchange]:
    with Exchange(now=clock.now) as running:
        yield running


@pytest.fixture
def ticker(exchange: Exchange, database: SyncDB, clock: ManualClock) -> Iterator[Ticker]:
    with closing(CoinMarketCap(base_url=exchange.url, api_key="a-key", clock=clock)) as client:
        yield make_ticker(make_settings(poll_seconds=20.0), database, client, clock)


def poll_for(ticker: Ticker, clock: ManualClock, seconds: float) -> None:
    for _ in range(int(seconds / 20)):
        ticker.poll()
        clock.advance(20)


def polling(database: SyncDB) -> dict[str, Any]:
    known = database.feeds.find_one({"_id": "coinmarketcap"}, {"_id": 0, "poll_seconds": 1, "budget": 1})
    assert known is not None
    return known


def test_a_small_plan_stretches_polling_with_one_line_that_names_the_numbers(
    ticker: Ticker, exchange: Exchange, clock: ManualClock, database: SyncDB, caplog: pytest.LogCaptureFixture
) -> None:
    """10,000 credits for a month of 31 days: one poll every 264 s."""
    with caplog.at_level(logging.WARNING, "app.ticker"):
        poll_for(ticker, clock, 2 * HOUR)
    assert 2 * HOUR / 300 <= len(exchange.asked(QUOTES)) <= 2 * HOUR / 260
    (line,) = [record.message for record in caplog.records if "polling every" in record.message]
    assert "instead of every 20 s" in line
    assert " credits are left until 2026-04-01 00:00 UTC" in line
    told = polling(database)
    assert 260 < told["poll_seconds"] < 270
    assert "credits are left" in told["budget"]
    assert len(exchange.asked(KEY_INFO)) == 2 * HOUR / 900


def test_credits_last_until_the_reset_and_then_start_anew(
    ticker: Ticker, exchange: Exchange, clock: ManualClock, database: SyncDB
) -> None:
    clock.advance((datetime(2026, 3, 31, 22, tzinfo=UTC) - clock.now()).total_seconds())
    exchange.plan.charge(0, clock.now())
    exchange.plan.used_this_month = exchange.plan.monthly_credits - 60
    poll_for(ticker, clock, 2 * HOUR)
    spent = len(exchange.asked(QUOTES))
    assert 45 <= spent <= 60
    assert exchange.plan.used_this_month <= exchange.plan.monthly_credits
    exchange.forget_requests()
    exchange.plan.monthly_credits = 1_000_000
    poll_for(ticker, clock, HOUR)
    assert len(exchange.asked(QUOTES)) >= HOUR / 20 - 60
    assert polling(database) == {"poll_seconds": 20.0, "budget": None}


def test_a_plan_that_is_renewed_early_is_noticed_within_a_quarter_of_an_hour(
    ticker: Ticker, exchange: Exchange, clock: ManualClock
) -> None:
    exchange.plan.charge(0, clock.now())
    exchange.plan.used_this_month = exchange.plan.monthly_credits
    poll_for(ticker, clock, 3 * HOUR)
    assert len(exchange.asked(QUOTES)) == 1
    exchange.plan.used_this_month = 0
    poll_for(ticker, clock, 900)
    assert len(exchange.asked(QUOTES)) > 1


def test_a_month_that_is_over_for_the_key_ends_early_when_credits_are_bought(
    ticker: Ticker, exchange: Exchange, clock: ManualClock
) -> None:
    """Error 1010 silences polls until the reset, or until key info shows more credits than when it came."""
    exchange.plan.charge(0, clock.now())
    exchange.plan.used_this_month = 9_000
    exchange.faults.add(QUOTES, Fault.cmc(1010), times=1)
    poll_for(ticker, clock, 48 * HOUR)
    assert len(exchange.asked(QUOTES)) == 1
    exchange.plan.monthly_credits = 50_000
    poll_for(ticker, clock, 900)
    assert len(exchange.asked(QUOTES)) > 1


def test_no_pace_hides_for_hours_that_there_are_no_prices() -> None:
    assert longest_gap(20.0) == timedelta(minutes=1)
    assert longest_gap(260.0) == timedelta(minutes=13)
    assert longest_gap(2_556_000.0) == timedelta(hours=1)


def test_a_plan_that_carries_it_changes_nothing(ticker: Ticker, exchange: Exchange, clock: ManualClock) -> None:
    exchange.plan.monthly_credits = 300_000
    poll_for(ticker, clock, HOUR)
    assert len(exchange.asked(QUOTES)) == HOUR / 20


def test_the_limit_per_minute_counts_too(ticker: Ticker, exchange: Exchange, clock: ManualClock) -> None:
    exchange.plan.monthly_credits, exchange.plan.minute_requests = 10_000_000, 2
    poll_for(ticker, clock, HOUR)
    assert len(exchange.asked(QUOTES)) == HOUR / 40


def test_a_key_info_that_fails_stops_nothing(ticker: Ticker, exchange: Exchange, clock: ManualClock) -> None:
    exchange.faults.add(KEY_INFO, Fault.html(502))
    poll_for(ticker, clock, HOUR)
    assert len(exchange.asked(QUOTES)) == HOUR / 20


def test_what_a_plan_says_is_read_with_care() -> None:
    now = datetime(2026, 3, 31, 22, tzinfo=UTC)
    old = read_key_info(
        {
            "plan": {"credit_limit_daily": 333, "credit_limit_monthly": 10_000,
                     "credit_limit_monthly_reset_timestamp": "2019-09-01T00:00:00.000Z"},
            "usage": {"current_day": {"credits_used": 300}, "current_month": {"credits_used": 10_500}},
        },
        now,
    )  # fmt: skip
    assert (old.day_left, old.month_left, old.calls_per_minute) == (33, 0, None)
    assert old.month_ends == datetime(2026, 4, 1, tzinfo=UTC)
    absurd = {"plan": {"rate_limit_minute": True}, "usage": {"current_month": {"credits_left": -1}}}
    oddities: list[Any] = [[], {"plan": 1}, absurd]
    for odd in oddities:
        unknown = read_key_info(odd, now)
        assert (unknown.day_left, unknown.month_left, unknown.calls_per_minute) == (None, None, None)


def test_a_daily_limit_is_spread_over_the_rest_of_the_day(exchange: Exchange, clock: ManualClock) -> None:
    limits = Credits(clock=clock, meter=Meter("coinmarketcap", clock))

    def with_a_day(body: Any) -> Any:
        body["data"]["usage"]["current_day"]["credits_left"] = 100
        return body

    exchange.faults.add(KEY_INFO, Fault.changed(with_a_day))
    with closing(CoinMarketCap(base_url=exchange.url, api_key="a-key", clock=clock)) as client:
        limits.look(client)
    until_midnight = timedelta(hours=12).total_seconds()
    assert limits.pace(calls=1).seconds == until_midnight / 100
    assert limits.pace(calls=2).seconds == until_midnight / 50
    assert limits.pace(calls=101).seconds == until_midnight
