"""The evaluator, straight against MongoDB: what fires, what doesn't, and what it costs."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from threading import Thread
from typing import Any

import pytest
from bson import ObjectId

from app.alerting import firing
from app.database import alerts, firings
from app.database.client import Document, SyncDB
from app.observations import Observation

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
BTC: Document = {"_id": 1, "symbol": "BTC"}
ETH: Document = {"_id": 1027, "symbol": "ETH"}

MakeAlert = Callable[..., Document]


@pytest.fixture
def make_alert(database: SyncDB) -> MakeAlert:
    def make(target: float, direction: Any = "above", coin: Document = BTC, **changes: Any) -> Document:
        wishes: dict[str, Any] = {"current_price": 100.0, "touch": True, "now": NOON, "user_id": ObjectId()}
        alert = alerts.new_alert(
            email="alice@example.com", coin=coin, target=target, direction=direction, **wishes | changes
        )
        database.alerts.insert_one(alert)
        return alert

    return make


def seen(price: float, coin_id: int = 1, at: datetime = NOON + SECOND) -> Observation:
    return Observation.of_instant(coin_id=coin_id, at=at, price=price, source="coinmarketcap")


def evaluate(database: SyncDB, *observations: Observation) -> int:
    return firing.evaluate(database, observations, now=NOON + 2 * SECOND)


def triggered(database: SyncDB) -> set[ObjectId]:
    return {alert["_id"] for alert in database.alerts.find({"status": "triggered"})}


@pytest.mark.parametrize(
    ("direction", "price", "fires"),
    [
        ("above", 99.99, False),
        ("above", 100.0, True),
        ("above", 5000.0, True),
        ("below", 100.01, False),
        ("below", 100.0, True),
        ("below", 0.5, True),
    ],
)
def test_equality_and_jumps_past_the_target_fire(
    database: SyncDB, make_alert: MakeAlert, direction: str, price: float, fires: bool
) -> None:
    make_alert(100.0, direction)
    assert evaluate(database, seen(price)) == int(fires)


@pytest.mark.parametrize(
    "text", ["0.1", "120.9", "0.00000001234", "6.315931e-8", "82916.79195138843", "0.30000000000000004"]
)
def test_the_same_decimal_text_is_the_same_price(database: SyncDB, make_alert: MakeAlert, text: str) -> None:
    make_alert(float(text))
    assert evaluate(database, seen(float(text))) == 1


def test_an_alert_fires_once_whatever_is_seen_later(database: SyncDB, make_alert: MakeAlert) -> None:
    """Invariant 1: evaluating again, the same or more, changes nothing about what fired."""
    alert = make_alert(110.0)
    assert evaluate(database, seen(111.0)) == 1
    fired = database.alerts.find_one({"_id": alert["_id"]})
    assert evaluate(database, seen(111.0)) == 0
    assert evaluate(database, seen(500.0, at=NOON + 9 * SECOND)) == 0
    assert database.alerts.find_one({"_id": alert["_id"]}) == fired


def test_two_evaluators_at_once_fire_each_alert_once(database: SyncDB, make_alert: MakeAlert) -> None:
    """Invariant 1: the sum of what they say they fired is the number of alerts."""
    for number in range(2000):
        make_alert(100.0 + number / 100)
    counts: list[int] = []
    threads = [Thread(target=lambda: counts.append(evaluate(database, seen(200.0)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 2000


def test_a_fired_alert_has_its_notification_in_the_same_write(database: SyncDB, make_alert: MakeAlert) -> None:
    """Invariant 2: at no instant is there a fired alert without exactly one notification, and no other has one."""
    fired, waiting = make_alert(110.0), make_alert(150.0)
    moments: list[Document] = []
    with database.alerts.watch(full_document="updateLookup") as changes:
        evaluate(database, seen(120.0))
        moments.append(changes.next())
        assert changes.try_next() is None
    (change,) = moments
    assert change["documentKey"]["_id"] == fired["_id"]
    written = change["updateDescription"]["updatedFields"]
    assert written["status"] == "triggered"
    assert written["notification"] == {
        "state": "pending",
        "attempts": 0,
        "due_at": NOON + 2 * SECOND,
        "sent_at": None,
        "error": None,
    }
    unfired = database.alerts.find_one({"_id": waiting["_id"]})
    assert unfired is not None
    assert unfired["notification"] is None


@pytest.mark.parametrize(("created_after", "fires"), [(-1, True), (0, True), (1, False), (3_600_000, False)])
def test_only_alerts_that_existed_when_an_observation_began_can_fire(
    database: SyncDB, make_alert: MakeAlert, created_after: int, fires: bool
) -> None:
    """Invariant 4, to the millisecond."""
    observed_from = NOON + SECOND
    make_alert(110.0, now=observed_from + timedelta(milliseconds=created_after))
    minute = Observation(
        1, observed_from, observed_from + timedelta(minutes=1), 95.0, 90.0, 120.0, 100.0, "bybit", "BTCUSDT"
    )
    assert evaluate(database, minute) == int(fires)


def test_an_observation_speaks_of_its_own_coin_only(database: SyncDB, make_alert: MakeAlert) -> None:
    """Invariant 6."""
    bitcoin, ether = make_alert(110.0), make_alert(110.0, coin=ETH)
    evaluate(database, seen(120.0, coin_id=1027))
    assert triggered(database) == {ether["_id"]}
    evaluate(database, seen(120.0, coin_id=1))
    assert triggered(database) == {ether["_id"], bitcoin["_id"]}


def test_what_fired_says_when_and_at_which_price(database: SyncDB, make_alert: MakeAlert) -> None:
    high, low = make_alert(110.0), make_alert(95.0, "below")
    start = NOON + SECOND
    evaluate(
        database, Observation(1, start, start + timedelta(minutes=1), 95.0, 90.0, 120.0, 100.0, "bybit", "BTCUSDT")
    )
    for alert, price in ((high, 120.0), (low, 90.0)):
        fired = database.alerts.find_one({"_id": alert["_id"]})
        assert fired is not None
        assert (fired["triggered_price"], fired["triggered_at"], fired["triggered_source"]) == (price, start, "bybit")
        assert fired["fired_at"] == NOON + 2 * SECOND


@pytest.mark.parametrize(
    ("stated", "price", "settled", "fires"),
    [
        (None, 90.0, "above", False),
        (None, 100.0, "above", True),
        (None, 110.0, "below", False),
        ("above", 110.0, "above", True),
        ("below", 110.0, "below", False),
    ],
)
def test_the_first_price_settles_what_was_left_open(
    database: SyncDB, make_alert: MakeAlert, stated: str | None, price: float, settled: str, fires: bool
) -> None:
    alert = make_alert(100.0, stated, current_price=None)
    assert evaluate(database, seen(price)) == int(fires)
    after = database.alerts.find_one({"_id": alert["_id"]})
    assert after is not None
    assert (after["direction"], after["directions"], after["currentPrice"]) == (settled, [settled], price)
    assert "unsettled" not in after
    evaluate(database, seen(1.0), seen(1.0, coin_id=1027))
    later = database.alerts.find_one({"_id": alert["_id"]})
    assert later is not None
    assert later["currentPrice"] == price


def test_a_price_from_before_its_creation_settles_nothing(database: SyncDB, make_alert: MakeAlert) -> None:
    """Invariant 4 for settling."""
    alert = make_alert(100.0, None, current_price=None, now=NOON + 5 * SECOND)
    evaluate(database, seen(50.0))
    after = database.alerts.find_one({"_id": alert["_id"]})
    assert after is not None
    assert after["direction"] is None


def examined(database: SyncDB, updates: Callable[[], object]) -> int:
    """How many index keys the updates read, by mongod's own profiler."""
    database.command("profile", 2)
    updates()
    database.command("profile", 0)
    return sum(entry.get("keysExamined", 0) for entry in database.system.profile.find({"op": "update"}))


def test_a_poll_costs_what_fires_not_what_is_armed(database: SyncDB, make_alert: MakeAlert) -> None:
    """Twenty times the alerts, none of them reached: mongod reads no more index keys."""

    def arm(count: int) -> None:
        new = [
            alerts.new_alert(
                user_id=ObjectId(), email="a@example.com", coin=BTC, target=200.0 + number / 1000, direction="above",
                touch=True, current_price=100.0, now=NOON,
            )
            for number in range(count)
        ]  # fmt: skip
        database.alerts.insert_many(new)

    arm(500)
    few = examined(database, lambda: evaluate(database, seen(150.0)))
    database.system.profile.drop()
    arm(9500)
    many = examined(database, lambda: evaluate(database, seen(150.0)))
    assert many == few <= 4


def test_the_watched_coins_are_read_off_the_index(database: SyncDB, make_alert: MakeAlert) -> None:
    for number in range(300):
        make_alert(200.0 + number, coin={"_id": 1 + number % 3, "symbol": "X"})
    assert firings.watched_coins(database) == {1, 2, 3}
    for query in ({"status": "created"}, {"unsettled": True}):
        plan = database.command("explain", {"distinct": "alerts", "key": "coin_id", "query": query})
        assert "DISTINCT_SCAN" in str(plan)
        assert "COLLSCAN" not in str(plan)
