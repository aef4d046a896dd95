"""A price moves on the wire, a person gets one correct mail."""

from collections.abc import Callable
from dataclasses import replace

from app.config import Settings
from app.database.client import SyncDB
from sandbox.exchange import Exchange
from sandbox.faults import Fault
from sandbox.mailbox import Mailbox
from tests.support import Caller, plain_text, running_service, wait_until

BTC, ETH, DOGE = 1, 1027, 74


def polls(exchange: Exchange) -> int:
    return len(exchange.asked("/quotes/latest"))


def wait_for_polls(exchange: Exchange, count: int) -> None:
    """Wait until `count` more polls have been asked for; with one more than that, the earlier ones were evaluated."""
    before = polls(exchange)
    wait_until(lambda: polls(exchange) >= before + count)


def test_each_reached_target_is_mailed_once_with_the_observed_price(
    alice: Caller, exchange: Exchange, mailbox: Mailbox
) -> None:
    """Invariants 1, 2 and 3 from outside: above and below, several prices and coins, jumps past the target."""
    exchange.market.set_price(BTC, 100_000.0)
    exchange.market.set_price(DOGE, 0.2)
    wait_for_polls(exchange, 2)
    reached = [
        alice.create(100_500),
        alice.create(101_000),
        alice.create(99_000),
        alice.create(0.00000001234, symbol="doge"),
    ]
    alice.create(150_000)
    alice.create(1, symbol="ETH")

    exchange.market.set_price(BTC, 101_234.5)
    mailbox.wait_for(2)
    exchange.market.set_price(BTC, 98_765.4)
    exchange.market.set_price(DOGE, 0.00000001)
    mailbox.wait_for(4)
    wait_for_polls(exchange, 3)

    mails = mailbox.to("alice@example.com")
    assert sorted(str(mail.message["Subject"]) for mail in mails) == [
        "BTC fell below 99,000 USD",
        "BTC rose above 100,500 USD",
        "BTC rose above 101,000 USD",
        "DOGE fell below 0.00000001234 USD",
    ]
    texts = [plain_text(mail) for mail in mails]
    assert sum("Price seen:      101,234.5 USD" in text for text in texts) == 2
    assert sum("Price seen:      98,765.4 USD" in text for text in texts) == 1
    assert sum("Price seen:      0.00000001 USD" in text for text in texts) == 1
    fired = {alert["alert_id"]: alert for alert in alice.alerts(filterStr="triggered")}
    assert fired.keys() == {alert["alert_id"] for alert in reached}
    wait_until(lambda: all(alert["notification"]["state"] == "sent" for alert in alice.alerts(filterStr="triggered")))
    assert len({mail.message["Message-ID"] for mail in mails}) == 4


def test_users_see_delete_and_are_mailed_only_their_own(
    alice: Caller, bob: Caller, exchange: Exchange, mailbox: Mailbox
) -> None:
    """Invariant 8."""
    hers, his = alice.create(110_000), bob.create(120_000)

    assert [alert["alert_id"] for alert in alice.alerts()] == [hers["alert_id"]]
    assert bob.post("/alerts/delete/", {"alert_id": hers["alert_id"]}).status_code == 404
    assert bob.get("/alerts/fetch/", email="alice@example.com").status_code == 403
    assert bob.post("/alerts/create/", {"targetPrice": 5, "email": "alice@example.com"}).status_code == 403

    exchange.market.set_price(BTC, 130_000.0)
    mailbox.wait_for(2)
    assert [mail.message["Subject"] for mail in mailbox.to("alice@example.com")] == ["BTC rose above 110,000 USD"]
    assert [mail.message["Subject"] for mail in mailbox.to("bob@example.com")] == ["BTC rose above 120,000 USD"]
    assert bob.alert(his["alert_id"])["status"] == "triggered"


def test_alerts_set_before_any_price_was_seen_are_settled_by_the_first_one(
    settings: Settings, exchange: Exchange, mailbox: Mailbox, caller: Callable[[str], Caller]
) -> None:
    """Invariant 6: a null price is none. The first real one settles directions, and fires only what it equals."""
    exchange.faults.add("/quotes/latest", Fault.price(None))
    exchange.market.set_price(BTC, 100_000.0)
    with running_service(settings) as url:
        user = caller(url).sign_up("early@example.com")
        over, under, equal = user.create(110_000), user.create(90_000), user.create(100_000)
        stated = user.create(80_000, direction="above")
        assert (over["direction"], over["currentPrice"]) == (None, None)

        exchange.faults.clear()
        mailbox.wait_for(2)
        wait_for_polls(exchange, 2)
        alerts = {alert["targetPrice"]: alert for alert in user.alerts()}

    directions = {target: alert["direction"] for target, alert in alerts.items()}
    assert directions == {110_000: "above", 90_000: "below", 100_000: "above", 80_000: "above"}
    assert {alert["currentPrice"] for alert in alerts.values()} == {100_000.0}
    fired = {alert["alert_id"] for alert in alerts.values() if alert["status"] == "triggered"}
    assert fired == {equal["alert_id"], stated["alert_id"]}
    assert under["alert_id"] not in fired


def test_forty_malformed_replies_fire_nothing_and_the_next_good_one_fires_what_is_due(
    alice: Caller, exchange: Exchange, mailbox: Mailbox
) -> None:
    """Invariants 6 and 7: the thread outlives whatever CoinMarketCap answers."""
    alert = alice.create(105_000)
    nonsense = [
        Fault.html(200),
        Fault.html(502),
        Fault.not_json(),
        Fault.truncate(),
        Fault.cut_off(),
        Fault.drop(),
        Fault.cmc(500),
        Fault.price(None),
        Fault.price(0),
        Fault.price(-1),
        Fault.price(float("nan")),
        Fault.price(float("inf")),
        Fault.price("106000"),
        Fault.price(True),
        Fault.price([106_000]),
        Fault.wrong_ids(),
        Fault.stale(3600),
        Fault.changed(lambda body: []),
        Fault.changed(lambda body: {"status": {"error_code": "none"}, "data": body["data"]}),
        Fault.changed(lambda body: {**body, "data": {"1": body["data"][0]}}),
    ]
    for fault in [*nonsense, *nonsense]:
        exchange.faults.add("/quotes/latest", fault, times=1)
    exchange.market.set_price(BTC, 106_000.0)
    before = polls(exchange)

    mailbox.wait_for(1, timeout=30.0)
    assert polls(exchange) - before >= 40
    assert alice.alert(alert["alert_id"])["triggered_price"] == 106_000.0
    wait_for_polls(exchange, 2)
    assert len(mailbox.mails) == 1


def test_a_connection_that_hangs_delays_no_mail_of_the_others(
    settings: Settings, exchange: Exchange, mailbox: Mailbox, caller: Callable[[str], Caller]
) -> None:
    """Invariant 7: SMTP_CONNECTIONS are so many threads; while one hangs, the others send all the rest."""
    mailbox.stall("RCPT", seconds=600, times=2)
    with running_service(replace(settings, smtp_connections=3)) as url:
        alice = caller(url).sign_up("alice@example.com")
        for number in range(20):
            alice.create(110_000.0 + number)
        exchange.market.set_price(BTC, 120_000.0)
        mailbox.wait_for(18)
        assert mailbox.connections == 3
        mailbox.behave()
        mailbox.close_connections()
        wait_until(lambda: alice.get("/health").json()["status"])
    assert len({str(mail.message["Message-ID"]) for mail in mailbox.mails}) == len(mailbox.mails)


def test_a_stop_puts_back_what_no_sender_has_begun(
    settings: Settings, exchange: Exchange, mailbox: Mailbox, caller: Callable[[str], Caller], database: SyncDB
) -> None:
    """Each sender finishes the mail in hand; the others' places in the queue are as if nobody had claimed them."""
    with running_service(replace(settings, smtp_connections=3)) as url:
        alice = caller(url).sign_up("alice@example.com")
        for number in range(60):
            alice.create(110_000.0 + number)
        mailbox.stall("DATA", seconds=0.05, times=None)
        exchange.market.set_price(BTC, 120_000.0)
        mailbox.wait_for(3)
    owed = list(database.alerts.find({"notification.state": "pending"}))
    assert database.alerts.count_documents({"notification.state": "sent"}) == len(mailbox.mails) == 60 - len(owed)
    assert owed
    assert all(
        alert["notification"]["due_at"] == alert["fired_at"] and "claim" not in alert["notification"] for alert in owed
    )
