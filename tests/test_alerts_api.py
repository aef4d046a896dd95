"""Alerts over HTTP: create, delete, fetch."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
import requests

from app.database.client import SyncDB
from sandbox.exchange import Exchange
from tests.support import Caller, wait_until

FIELDS = {
    "alert_id", "status", "symbol", "coin_id", "direction", "touch", "targetPrice", "currentPrice", "email",
    "created_at", "triggered_at", "triggered_price", "triggered_source", "deleted_at", "notification",
}  # fmt: skip


def btc_price(exchange: Exchange) -> float:
    return exchange.market.coins[1].history.price


@pytest.mark.parametrize("target", [120.9, 0.00000001234, 1, 0.1 + 0.2, 123_456_789.123456, 1e-18, 999_999_999_999_999])
def test_a_target_is_kept_exactly_as_given(alice: Caller, target: float) -> None:
    alert = alice.create(target)
    assert alert.keys() == FIELDS
    assert alert["targetPrice"] == target
    assert alice.alert(alert["alert_id"])["targetPrice"] == target


def test_the_direction_follows_from_the_price_at_creation(alice: Caller, exchange: Exchange) -> None:
    price = btc_price(exchange)
    over, equal, under = alice.create(price * 2), alice.create(price), alice.create(price / 2)
    assert [alert["direction"] for alert in (over, equal, under)] == ["above", "above", "below"]
    assert over["currentPrice"] == price
    assert alice.create(price / 4, direction="above")["direction"] == "above"


def test_a_ticker_means_the_best_ranked_active_coin(alice: Caller) -> None:
    assert alice.create(100, symbol="UNI")["coin_id"] == 7083
    assert alice.create(100, symbol=" sol ")["symbol"] == "SOL"
    unknown = alice.post("/alerts/create/", {"targetPrice": 5, "symbol": "NOSUCH"})
    assert unknown.status_code == 422
    assert "NOSUCH" in unknown.json()["detail"]


def test_the_same_live_alert_can_be_set_once(alice: Caller, bob: Caller) -> None:
    first = alice.create(250_000)
    again = alice.post("/alerts/create/", {"targetPrice": 250_000})
    assert again.status_code == 409
    assert first["alert_id"] in again.json()["detail"]
    assert alice.create(250_000, direction="below")["alert_id"] != first["alert_id"]
    assert bob.create(250_000)["alert_id"] != first["alert_id"]
    alice.post("/alerts/delete/", {"alert_id": first["alert_id"]})
    assert alice.create(250_000)["alert_id"] != first["alert_id"]


def test_of_simultaneous_equal_alerts_exactly_one_is_set(alice: Caller, database: SyncDB) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: alice.post("/alerts/create/", {"targetPrice": 250_000}).status_code, range(8))
        )
    assert sorted(answers) == [201] + [409] * 7
    assert database.alerts.count_documents({}) == 1


def test_deleting_can_be_repeated_and_is_final(alice: Caller) -> None:
    alert = alice.create(250_000)
    deleted = alice.post("/alerts/delete", alert)
    assert deleted.status_code == 200
    assert (deleted.json()["status"], deleted.json()["deleted_at"] is not None) == ("deleted", True)
    assert alice.post("/alerts/delete/", {"alert_id": alert["alert_id"]}).json() == deleted.json()


def test_a_fired_alert_cannot_be_deleted(alice: Caller, exchange: Exchange) -> None:
    alert = alice.create(250_000)
    exchange.market.set_price(1, 260_000.0)
    wait_until(lambda: alice.alert(alert["alert_id"])["status"] == "triggered")
    refused = alice.post("/alerts/delete/", {"alert_id": alert["alert_id"]})
    assert refused.status_code == 409
    assert "triggered" in refused.json()["detail"]


@pytest.mark.parametrize("alert_id", ["6740c0ffee0ddba11ca7f00d", "nonsense", "\x00", "$where", "x" * 64])
def test_deleting_what_is_not_there_is_a_404(alice: Caller, alert_id: str) -> None:
    assert alice.post("/alerts/delete/", {"alert_id": alert_id}).status_code == 404


def test_the_list_is_newest_first_in_pages(alice: Caller) -> None:
    ids = [alice.create(200_000 + number)["alert_id"] for number in range(7)][::-1]
    assert [alert["alert_id"] for alert in alice.alerts()] == ids

    page = alice.get("/alerts/fetch/", page=2, per_page=3)
    assert [alert["alert_id"] for alert in page.json()] == ids[3:6]
    assert page.headers["X-Total-Count"] == "7"
    links = {link["rel"]: link["url"] for link in requests.utils.parse_header_links(page.headers["Link"])}
    assert links.keys() == {"first", "prev", "next", "last"}
    following = requests.get(links["next"], headers={"Authorization": f"Bearer {alice.token}"}, timeout=10)
    assert [alert["alert_id"] for alert in following.json()] == ids[6:]
    assert alice.get("/alerts/fetch/", page=9, per_page=3).json() == []
    assert alice.get("/alerts/fetch/", page=9, per_page=3).headers["X-Total-Count"] == "7"


def test_the_list_can_be_filtered_by_one_or_several_states(alice: Caller) -> None:
    kept, dropped = alice.create(200_001), alice.create(200_002)
    alice.post("/alerts/delete/", {"alert_id": dropped["alert_id"]})
    assert [alert["alert_id"] for alert in alice.alerts(filterStr="created")] == [kept["alert_id"]]
    assert [alert["alert_id"] for alert in alice.alerts(filterStr="deleted")] == [dropped["alert_id"]]
    assert len(alice.alerts(filterStr="created,deleted", email="ALICE@example.com")) == 2
    assert alice.alerts(filterStr="triggered") == []


def test_times_are_rfc_3339_in_utc(alice: Caller) -> None:
    created_at = alice.create(200_000)["created_at"]
    assert created_at.endswith("Z")
    assert abs((datetime.fromisoformat(created_at) - datetime.now(UTC)).total_seconds()) < 60


@pytest.mark.parametrize("fixed", ["/alerts/fetch", "/alerts/fetch/", "/health", "/health/", "/"])
def test_every_route_answers_with_and_without_the_slash(alice: Caller, fixed: str) -> None:
    answer = alice.get(fixed)
    assert answer.status_code == 200
    assert answer.history == []


def test_there_is_a_bound_on_live_alerts(alice: Caller, database: SyncDB) -> None:
    """The bound of 100 holds for live alerts only."""
    for number in range(100):
        alice.create(200_000 + number)
    over = alice.post("/alerts/create/", {"targetPrice": 300_000})
    assert over.status_code == 409
    assert "100" in over.json()["detail"]
    alice.post("/alerts/delete/", {"alert_id": alice.alerts(per_page=1)[0]["alert_id"]})
    assert alice.post("/alerts/create/", {"targetPrice": 300_000}).status_code == 201
