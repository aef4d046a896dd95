"""After an outage candles come before polls, so that the first touch is what an alert tells; but not for long."""

from collections.abc import Iterator

import pytest
from bson import ObjectId

from app.database.client import Document, SyncDB
from sandbox.exchange import Exchange
from sandbox.faults import Fault
from tests.support import ManualClock
from tests.watch import Watch

PRICE = 100_000.0


@pytest.fixture
def exchange(clock: ManualClock) -> Iterator[Exchange]:
    with Exchange(now=clock.now) as running:
        running.market.set_price(1, PRICE)
        yield running


@pytest.fixture
def watch(exchange: Exchange, database: SyncDB, clock: ManualClock) -> Iterator[Watch]:
    with Watch(exchange, database, clock) as made:
        made.poll()
        made.arm(200_000)
        made.run(minutes=3)
        yield made


def stored(database: SyncDB, alert_id: ObjectId) -> Document:
    alert = database.alerts.find_one({"_id": alert_id})
    assert alert is not None
    return alert


def go_through_an_outage(watch: Watch, exchange: Exchange, clock: ManualClock) -> None:
    """Ten minutes after its crash the service is back; the price rose after five and stayed."""
    clock.advance(300)
    exchange.market.set_price(1, 106_000.0)
    clock.advance(300)
    exchange.market.set_price(1, 105_000.0)
    clock.advance(7)
    watch.restart()


def test_the_first_poll_after_an_outage_leaves_the_first_touch_to_the_candles(
    watch: Watch, exchange: Exchange, clock: ManualClock, database: SyncDB
) -> None:
    alert, polls_only = watch.arm(104_000), watch.arm(103_000, touch=False)
    touched_at = clock.now()
    go_through_an_outage(watch, exchange, clock)
    fresh = watch.arm(102_000)
    watch.poll()
    assert stored(database, alert)["status"] == "created"
    assert stored(database, polls_only)["status"] == stored(database, fresh)["status"] == "triggered"
    watch.follow_candles()
    watch.poll()
    fired = stored(database, alert)
    assert (fired["triggered_source"], fired["triggered_price"]) == ("bybit", 106_000.0)
    assert 240 <= (fired["triggered_at"] - touched_at).total_seconds() <= 360
    assert stored(database, polls_only)["triggered_price"] == 105_000.0
    assert stored(database, polls_only)["triggered_source"] == "coinmarketcap"


def test_polls_do_not_wait_for_a_bybit_that_fails(
    watch: Watch, exchange: Exchange, clock: ManualClock, database: SyncDB
) -> None:
    """Invariant 7: Bybit holds up no poll."""
    alert = watch.arm(104_000)
    go_through_an_outage(watch, exchange, clock)
    exchange.faults.add("/v5/market/", Fault.html(502))
    watch.follow_candles()
    watch.poll()
    assert stored(database, alert)["triggered_source"] == "coinmarketcap"


def test_polls_wait_half_a_minute_at_most(
    watch: Watch, exchange: Exchange, clock: ManualClock, database: SyncDB
) -> None:
    """Whoever should follow the candles hangs; what was polled meanwhile still fires, with its own time."""
    alert = watch.arm(104_000)
    go_through_an_outage(watch, exchange, clock)
    polled_at = clock.now()
    watch.poll()
    clock.advance(20)
    watch.poll()
    assert stored(database, alert)["status"] == "created"
    clock.advance(20)
    watch.poll()
    fired = stored(database, alert)
    assert (fired["triggered_at"], fired["triggered_price"]) == (polled_at, 105_000.0)


def test_an_outage_of_a_minute_is_one_too(
    watch: Watch, exchange: Exchange, clock: ManualClock, database: SyncDB
) -> None:
    """The candle that touched the target closed while nobody looked."""
    clock.advance(60)
    alert = watch.arm(104_000)
    watch.run(minutes=2)
    clock.advance(20)
    exchange.market.set_price(1, 106_000.0)
    clock.advance(75)
    exchange.market.set_price(1, 105_000.0)
    watch.restart()
    watch.poll()
    assert stored(database, alert)["status"] == "created"
    watch.follow_candles()
    assert stored(database, alert)["triggered_price"] == 106_000.0
