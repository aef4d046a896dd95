"""Two things at the same instant: exactly one wins."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from threading import Barrier

from bson import ObjectId

from app.alerting import firing
from app.alerting.creation import AlertCreator
from app.auth.auth_handler import CurrentUser
from app.clock import Clock
from app.database.client import Document, SyncDB, connect_async
from app.database.coins import store_prices
from app.models import AlertSchema
from app.observations import Observation
from sandbox.mailbox import Mailbox
from tests.support import Caller, ManualClock, make_settings, wait_until

RACES = 200
BTC = 1


def test_delete_racing_a_trigger_lets_exactly_one_win(alice: Caller, database: SyncDB, mailbox: Mailbox) -> None:
    """Invariants 1 and 2: a delete that won is followed by no mail, one that lost by exactly one, 200 times over."""
    clock = Clock()
    outcomes: dict[str, int] = {}

    def fire(price: float, start: Barrier) -> None:
        seen = Observation.of_instant(coin_id=BTC, at=clock.now(), price=price, source="coinmarketcap")
        start.wait()
        firing.evaluate(database, [seen], now=clock.now())

    def delete(alert_id: str, start: Barrier) -> int:
        start.wait()
        return alice.post("/alerts/delete/", {"alert_id": alert_id}).status_code

    with ThreadPoolExecutor(2) as pool:
        for number in range(RACES):
            target = 200_000.0 + number
            alert_id = alice.create(target)["alert_id"]
            start = Barrier(2)
            firing_run, deletion = pool.submit(fire, target, start), pool.submit(delete, alert_id, start)
            firing_run.result()
            outcomes[alert_id] = deletion.result()

    assert set(outcomes.values()) <= {200, 409}
    lost = {alert_id for alert_id, status in outcomes.items() if status == 409}
    states = {str(alert["_id"]): alert["status"] for alert in database.alerts.find()}
    assert states == {alert_id: "triggered" if alert_id in lost else "deleted" for alert_id in outcomes}
    wait_until(lambda: database.alerts.count_documents({"notification.due_at": {"$exists": True}}) == 0)
    mailed = [alert_id for mail in mailbox.mails for alert_id in outcomes if alert_id in str(mail.message)]
    assert sorted(mailed) == sorted(lost)
    # Where one side always won there was no race to test.
    assert 0 < len(lost) < RACES


def test_the_last_places_are_given_out_one_at_a_time(alice: Caller, database: SyncDB) -> None:
    """MAX_ALERTS_PER_USER is 100: of 20 simultaneous requests for the last 3 places, 3 get one."""
    for number in range(97):
        alice.create(200_000 + number)
    with ThreadPoolExecutor(20) as pool:
        answers = pool.map(
            lambda number: alice.post("/alerts/create/", {"targetPrice": 300_000 + number}).status_code, range(20)
        )
        assert sorted(answers) == [201] * 3 + [409] * 17
    assert database.alerts.count_documents({"status": "created"}) == 100


class PriceComesInBetween(ManualClock):
    """A clock under which a price is seen and evaluated just after an alert's creation time was chosen."""

    def __init__(self, database: SyncDB) -> None:
        super().__init__()
        self._database = database
        self._was_asked = False

    def now(self) -> datetime:
        chosen = super().now()
        if not self._was_asked:
            self._was_asked = True
            self.advance(0.5)
            seen = Observation.of_instant(coin_id=BTC, at=super().now(), price=100.0, source="coinmarketcap")
            store_prices(self._database, [seen], now=seen.end)
            assert firing.evaluate(self._database, [seen], now=seen.end) == 0
            self.advance(0.5)
        return chosen


async def create(mongo_url: str, database_name: str, wish: AlertSchema, clock: Clock) -> Document:
    """Create an alert with the helper that the route calls, under a clock of the test's."""
    client = connect_async(mongo_url)
    user = CurrentUser(ObjectId(), "alice@example.com")
    try:
        creator = AlertCreator(database=client[database_name], settings=make_settings(), clock=clock)
        return await creator.create(wish, user=user)
    finally:
        await client.close()


def test_its_direction_follows_from_the_price_that_it_counts_from(
    mongo_url: str, database_name: str, database: SyncDB
) -> None:
    """The price crossed the target while the alert was being made: what it did before is not what it is told of."""
    seen = Observation.of_instant(coin_id=BTC, at=ManualClock().now(), price=90.0, source="coinmarketcap")
    store_prices(database, [seen], now=seen.end)
    clock = PriceComesInBetween(database)

    alert = asyncio.run(create(mongo_url, database_name, AlertSchema(targetPrice=95.0), clock))
    assert (alert["direction"], alert["currentPrice"]) == ("below", 100.0)
    stored = database.alerts.find_one({"_id": alert["_id"]})
    assert stored is not None
    assert (stored["direction"], stored["directions"], stored["currentPrice"]) == ("below", ["below"], 100.0)


def test_an_alert_counts_from_after_a_price_that_was_evaluated_without_it(
    mongo_url: str, database_name: str, database: SyncDB
) -> None:
    """Invariant 4 turned round: no observation since its creation has been missed, for its creation moves behind it."""
    clock = PriceComesInBetween(database)

    wish = AlertSchema(targetPrice=100.0, direction="above")
    alert = asyncio.run(create(mongo_url, database_name, wish, clock))
    coin = database.coins.find_one({"_id": BTC})
    stored = database.alerts.find_one({"_id": alert["_id"]})
    assert coin is not None
    assert stored is not None
    assert stored["created_at"] == alert["created_at"] > coin["price_seen_at"]
