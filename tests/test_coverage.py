"""Receipts: what was watched for an alert, by which source, and what was not (invariant 5)."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import pytest
from bson import ObjectId

from app.alerting.receipts import coverage_of
from app.database.client import SyncDB, connect_async
from app.models import Coverage, UnseenSpan
from sandbox.exchange import Exchange
from sandbox.faults import Fault
from tests.conftest import Quiet
from tests.support import Caller, ManualClock
from tests.watch import Watch

PRICE = 100_000.0
QUOTES, BYBIT = "/quotes/latest", "/v5/market/"
MINUTE = timedelta(minutes=1)

Receipt = Callable[[ObjectId], Coverage]


@pytest.fixture
def exchange(clock: ManualClock) -> Iterator[Exchange]:
    with Exchange(now=clock.now) as running:
        running.market.set_price(1, PRICE)
        yield running


@pytest.fixture
def watch(exchange: Exchange, database: SyncDB, clock: ManualClock) -> Iterator[Watch]:
    with Watch(exchange, database, clock) as made:
        made.poll()
        yield made


@pytest.fixture
def receipt(database: SyncDB, clock: ManualClock, mongo_url: str, watch: Watch) -> Receipt:
    async def ask(alert_id: ObjectId) -> Coverage:
        async with connect_async(mongo_url) as client:
            web = client[database.name]
            alert = await web.alerts.find_one({"_id": alert_id})
            assert alert is not None
            return await coverage_of(web, alert, settings=watch.settings, clock=clock)

    return lambda alert_id: asyncio.run(ask(alert_id))


def spans(coverage: Coverage, source: str) -> list[tuple[datetime, datetime]]:
    return [(span.start, span.end) for span in coverage.intervals if span.source == source]


def holes(coverage: Coverage, source: str) -> list[UnseenSpan]:
    return [hole for hole in coverage.holes if hole.source == source]


def test_a_quiet_day_has_both_sources_and_no_holes(watch: Watch, clock: ManualClock, receipt: Receipt) -> None:
    clock.advance(7)
    created = clock.now()
    alert = watch.arm(200_000)
    watch.run(minutes=10)
    told = receipt(alert)
    assert (told.since, told.until) == (created, clock.now())
    assert spans(told, "coinmarketcap") == [(created, clock.now())]
    ((start, end),) = spans(told, "bybit")
    assert start == created.replace(second=0) + MINUTE
    assert clock.now() - end < 2 * MINUTE
    assert {span.pair for span in told.intervals} == {None, "BTCUSDT"}
    assert told.holes == told.unwatched == []


def test_a_silent_source_is_a_hole_with_its_reason_and_the_other_covers_it(
    watch: Watch, exchange: Exchange, clock: ManualClock, receipt: Receipt
) -> None:
    alert = watch.arm(200_000)
    watch.run(minutes=3)
    exchange.faults.add(QUOTES, Fault.html(502))
    went_silent = clock.now()
    watch.run(minutes=9)
    during = receipt(alert)
    exchange.faults.clear()
    watch.run(minutes=3)
    for told in (during, receipt(alert)):
        (hole,) = holes(told, "coinmarketcap")
        assert hole.start == went_silent
        assert "HTTP 502" in hole.reason
        assert told.unwatched == []
    assert hole.end == went_silent + timedelta(minutes=9, seconds=20)
    assert len(spans(receipt(alert), "coinmarketcap")) == 2


def test_a_dead_service_is_a_hole_of_polls_and_candles_fill_it(
    watch: Watch, clock: ManualClock, receipt: Receipt
) -> None:
    alert = watch.arm(200_000)
    watch.run(minutes=3)
    died = clock.now()
    clock.advance(3600)
    (unwatched,) = receipt(alert).unwatched
    assert (unwatched.start, unwatched.end) == (died, clock.now() - 2 * MINUTE)
    watch.restart()
    watch.run(minutes=2)
    told = receipt(alert)
    (hole,) = holes(told, "coinmarketcap")
    assert (hole.start, hole.end) == (died, died + timedelta(seconds=3620))
    assert "not running" in hole.reason
    assert len(spans(told, "bybit")) == 1
    assert told.unwatched == []


def test_bybit_silent_is_an_open_hole_until_it_answers_again(
    watch: Watch, exchange: Exchange, clock: ManualClock, receipt: Receipt
) -> None:
    alert = watch.arm(200_000)
    watch.run(minutes=3)
    exchange.faults.add(BYBIT, Fault.bybit(10016))
    watch.run(minutes=10)
    (hole,) = holes(receipt(alert), "bybit")
    assert (hole.end, "will be looked for again" in hole.reason) == (clock.now(), True)
    exchange.faults.clear()
    watch.run(minutes=2)
    assert receipt(alert).holes == []


def test_a_coin_without_a_pair_says_so(
    watch: Watch, exchange: Exchange, database: SyncDB, clock: ManualClock, receipt: Receipt
) -> None:
    exchange.market.add_coin(777, "ONLY", "Only here", rank=5, price=3.0)
    database.coins.insert_one({"_id": 777, "ticker": "ONLY", "price": 3.0, "price_seen_at": clock.now()})
    alert, polls_only = watch.arm(4, coin_id=777), watch.arm(5, coin_id=777, touch=False)
    watch.run(minutes=5)
    told = receipt(alert)
    (hole,) = holes(told, "bybit")
    assert "no Bybit pair" in hole.reason
    assert spans(told, "coinmarketcap") == [(told.since, told.until)]
    assert told.unwatched == []
    assert {span.source for span in receipt(polls_only).intervals} == {"coinmarketcap"}
    assert receipt(polls_only).holes == []


def test_a_receipt_ends_with_its_alert_and_outlives_the_watching(
    watch: Watch, exchange: Exchange, database: SyncDB, clock: ManualClock, receipt: Receipt
) -> None:
    alert = watch.arm(104_000)
    watch.run(minutes=5)
    exchange.market.set_price(1, 105_000.0)
    watch.run(minutes=2)
    ended = receipt(alert)
    assert ended.status == "triggered"
    watch.run(minutes=60)
    assert database.watermarks.count_documents({}) == 0
    assert receipt(alert) == ended
    assert spans(ended, "bybit")
    assert ended.unwatched == []


def test_a_receipt_tells_the_last_thousand_holes_and_from_when_on_that_is(
    watch: Watch, database: SyncDB, clock: ManualClock, receipt: Receipt
) -> None:
    alert, start = watch.arm(200_000), clock.now()
    clock.advance(1_500 * 120)
    spans = [start + number * 2 * MINUTE for number in range(1_500)]
    database.holes.insert_many(
        [{"coin_id": 1, "source": "bybit", "start": at, "end": at + MINUTE, "reason": "a test"} for at in spans]
    )
    told = receipt(alert)
    assert told.since == spans[500] + MINUTE
    assert len(holes(told, "bybit")) >= 999


def test_a_receipt_is_for_the_alerts_owner_alone(quiet: Quiet, caller: Callable[[str], Caller]) -> None:
    """Invariant 8."""
    alice, bob = caller(quiet.url).sign_up("alice@example.com"), caller(quiet.url).sign_up("bob@example.com")
    alert_id = alice.create(100_000)["alert_id"]
    told = alice.get("/alerts/coverage/", alert_id=alert_id)
    assert (told.status_code, told.json()["alert_id"]) == (200, alert_id)
    assert alice.get("/alerts/coverage", alert_id=alert_id).status_code == 200
    assert bob.get("/alerts/coverage/", alert_id=alert_id).status_code == 404
    assert alice.get("/alerts/coverage/", alert_id="no-such").status_code == 404
    assert alice.get("/alerts/coverage/").status_code == 422
    assert caller(quiet.url).get("/alerts/coverage/", alert_id=alert_id).status_code == 401
