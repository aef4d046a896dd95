"""A burst: thousands of alerts that one move of the price fires, and what must have come of it."""

import random
from collections import Counter
from datetime import datetime, timedelta

from bson import ObjectId

from app.clock import Clock
from app.database import alerts
from app.database.client import Document, SyncDB
from sandbox.exchange import Exchange
from sandbox.mailbox import Mail, Mailbox
from tests.support import plain_text, wait_until

BTC = 1
BEFORE, HIGH = 100_000.0, 125_000.0
PATIENCE_SECONDS = 240.0


class Burst:
    """Alerts on both sides of the price; a quarter are in reach of `HIGH`."""

    def __init__(self, exchange: Exchange, mailbox: Mailbox, database: SyncDB, count: int, dice: random.Random) -> None:
        self._exchange = exchange
        self._mailbox = mailbox
        self._database = database
        exchange.market.set_price(BTC, BEFORE)
        # Older than any price that a service polls from now on.
        created_at = Clock().now() - timedelta(seconds=1)
        made = [_alert(number, dice.uniform(50_000.0, 150_000.0), created_at) for number in range(count)]
        database.alerts.insert_many(made)
        self.expected = {alert["_id"] for alert in made if _is_reached(alert)}

    def begin(self) -> None:
        """The price rises and stays where it is."""
        self._exchange.market.set_price(BTC, HIGH)

    def wait_for_mails(self, count: int | None = None) -> None:
        """Wait until so many alerts were mailed, or all that must be."""
        wanted = len(self.expected) if count is None else count
        wait_until(lambda: len(self._mailed()) >= wanted, PATIENCE_SECONDS)

    def let_leases_run_out(self) -> None:
        """What dead processes had claimed is free two minutes later: make it now."""
        self._database.alerts.update_many(
            {"notification.claim": {"$exists": True}}, {"$set": {"notification.due_at": Clock().now()}}
        )

    def check(self, most_repeats: int) -> None:
        """Fired is what the path reached, both ways; each has its mail; few came twice, and under the same id."""
        wait_until(lambda: self._count({"notification.due_at": {"$exists": True}}) == 0, PATIENCE_SECONDS)
        fired = {alert["_id"] for alert in self._database.alerts.find({"status": "triggered"}, {"_id": 1})}
        assert fired == self.expected
        assert self._count({"notification.state": "sent"}) == len(self.expected)
        mails = list(self._mailbox.mails)
        assert {_alert_id(mail) for mail in mails} == self.expected
        ids = Counter(mail.message["Message-ID"] for mail in mails)
        assert len(ids) == len(self.expected)
        repeats = len(mails) - len(ids)
        print(f"{len(ids)} mails, {repeats} of them twice, at most {most_repeats} allowed")
        assert repeats <= most_repeats

    def _mailed(self) -> set[ObjectId]:
        return {_alert_id(mail) for mail in list(self._mailbox.mails)}

    def _count(self, query: Document) -> int:
        return self._database.alerts.count_documents(query)


def _alert(number: int, target: float, created_at: datetime) -> Document:
    return alerts.new_alert(
        user_id=ObjectId(),
        email=f"user{number}@example.com",
        coin={"_id": BTC, "symbol": "BTC"},
        target=target,
        direction="above" if target > BEFORE else "below",
        touch=True,
        current_price=BEFORE,
        now=created_at,
    )


def _is_reached(alert: Document) -> bool:
    target: float = alert["target"]
    return alert["direction"] == "above" and target <= HIGH


def _alert_id(mail: Mail) -> ObjectId:
    return ObjectId(plain_text(mail).rpartition("Alert id:")[2].split()[0])
