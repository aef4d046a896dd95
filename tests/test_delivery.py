"""The outbox against real SMTP: what is sent, repeated, deferred and given up (invariants 3 and 7)."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from threading import Thread
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from app.alerting import firing
from app.alerting.delivery import Delivery
from app.alerting.mailer import SmtpMailer
from app.alerting.message import message_id
from app.alerting.outbox import LEASE, ONE_MAIL, Outbox
from app.config import Settings
from app.database import alerts, notifications
from app.database.client import OPTIONS, Document, SyncDB
from app.errors import UnrecordedError
from app.observations import Observation
from sandbox.mailbox import Mailbox
from tests.support import ManualClock, failing, wait_until

MAIL_FROM = "alerts@cryptoticker.example.com"


@pytest.fixture
def make_delivery(database: SyncDB, settings: Settings, clock: ManualClock) -> Iterator[Callable[..., Delivery]]:
    """Senders, each with a connection of its own; without an outbox to share, each is a copy of the service."""
    with ExitStack() as stack:

        def make(outbox: Outbox | None = None, mailer: SmtpMailer | None = None, **options: Any) -> Delivery:
            if outbox is None:
                outbox = Outbox(database=database, clock=clock)
                stack.callback(outbox.close)
            mailer = mailer or SmtpMailer(settings)
            stack.callback(mailer.close)
            return Delivery(
                database=database, outbox=outbox, mailer=mailer, mail_from=MAIL_FROM, clock=clock, **options
            )

        yield make


@pytest.fixture
def fire(database: SyncDB, clock: ManualClock) -> Callable[..., list[ObjectId]]:
    """Fires one alert for each address, in that order of becoming due."""

    def make(*emails: str) -> list[ObjectId]:
        ids = []
        for email in emails:
            alert = alerts.new_alert(
                user_id=ObjectId(), email=email, coin={"_id": 1, "symbol": "BTC"}, target=100_000.0, direction="above",
                touch=True, current_price=90_000.0, now=clock.now(),
            )  # fmt: skip
            database.alerts.insert_one(alert)
            seen = Observation.of_instant(coin_id=1, at=clock.now(), price=100_500.0, source="coinmarketcap")
            assert firing.evaluate(database, [seen], now=clock.now()) == 1
            ids.append(alert["_id"])
            clock.advance(0.001)
        return ids

    return make


def deliver(delivery: Delivery) -> int:
    return delivery.deliver_due(stopping=lambda: False)


def drain(delivery: Delivery) -> None:
    while deliver(delivery):
        pass


def together(deliveries: list[Delivery]) -> None:
    threads = [Thread(target=drain, args=[delivery]) for delivery in deliveries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def notification(database: SyncDB, alert_id: ObjectId) -> Document:
    alert = database.alerts.find_one({"_id": alert_id})
    assert alert is not None
    found: Document = alert["notification"]
    return found


def test_a_mail_is_sent_once_and_recorded(
    database: SyncDB, make_delivery: Any, fire: Any, mailbox: Mailbox, clock: ManualClock
) -> None:
    (alert_id,) = fire("alice@example.com")
    delivery = make_delivery()
    assert (deliver(delivery), deliver(delivery)) == (1, 0)
    assert [mail.recipient for mail in mailbox.mails] == ["alice@example.com"]
    assert notification(database, alert_id) == {
        "state": "sent",
        "attempts": 1,
        "sent_at": clock.now(),
        "error": None,
    }


def test_a_batch_goes_over_one_connection(make_delivery: Any, fire: Any, mailbox: Mailbox) -> None:
    fire(*[f"user{number}@example.com" for number in range(20)])
    assert deliver(make_delivery()) == 20
    assert mailbox.connections == 1
    assert [mail.recipient for mail in mailbox.mails] == [f"user{number}@example.com" for number in range(20)]


def test_a_connection_carries_as_many_mails_as_the_setting_says(
    settings: Settings, make_delivery: Any, fire: Any, mailbox: Mailbox
) -> None:
    fire(*[f"user{number}@example.com" for number in range(25)])
    drain(make_delivery(mailer=SmtpMailer(replace(settings, smtp_mails_per_connection=10))))
    assert (len(mailbox.mails), mailbox.connections) == (25, 3)


def test_a_crash_after_sending_repeats_that_mail_with_the_same_message_id(
    database: SyncDB, make_delivery: Any, fire: Any, mailbox: Mailbox, clock: ManualClock
) -> None:
    """Invariant 3: killed between the server's 250 and our record of it, only that mail comes again."""
    first, second = fire("alice@example.com", "bob@example.com")
    dying = make_delivery()

    class KilledError(BaseException):
        """What SIGKILL looks like from inside: nothing after it runs."""

    def die_after_first(*_: Any) -> bool:
        if mailbox.mails:
            raise KilledError
        return False

    # The mail is out, and the process dies before the record: the record is undone here.
    with pytest.raises(KilledError):
        dying.deliver_due(stopping=lambda: die_after_first())
    wait_until(lambda: notification(database, first)["state"] == "sent")
    database.alerts.update_one(
        {"_id": first},
        {"$set": {"notification.state": "pending", "notification.due_at": clock.now() + LEASE}},
    )

    assert deliver(make_delivery()) == 0  # the dead sender's lease still runs
    clock.advance(LEASE.total_seconds())
    assert deliver(make_delivery()) == 2
    ids = [mail.message["Message-ID"] for mail in mailbox.to("alice@example.com")]
    assert len(ids) == 2
    assert len(set(ids)) == 1
    assert len(mailbox.to("bob@example.com")) == 1
    assert notification(database, second)["state"] == "sent"


def test_the_message_id_is_a_pure_function_of_the_firing() -> None:
    """Invariant 3."""
    one, other = {"_id": ObjectId()}, {"_id": ObjectId()}
    assert message_id(one, mail_from=MAIL_FROM) == message_id(dict(one), mail_from=f"Ticker <{MAIL_FROM}>")
    assert message_id(one, mail_from=MAIL_FROM) != message_id(other, mail_from=MAIL_FROM)


@pytest.mark.parametrize("copies", [True, False])
def test_several_senders_share_an_outbox_without_repeating(
    database: SyncDB, make_delivery: Any, fire: Any, mailbox: Mailbox, clock: ManualClock, copies: bool
) -> None:
    """Of senders that reach for the same mails, in one process or in several, each mail goes to one."""
    addresses = [f"user{number}@example.com" for number in range(120)]
    fire(*addresses)
    shared = None if copies else Outbox(database=database, clock=clock)
    together([make_delivery(shared) for _ in range(4)])
    # A copy that lost every race of its round sees an empty batch and leaves; the winners do the work.
    drain(make_delivery(shared))
    assert sorted(mail.recipient for mail in mailbox.mails) == sorted(addresses)
    assert database.alerts.count_documents({"notification.state": "sent"}) == 120


def test_a_connection_that_hangs_holds_up_no_mail_but_its_own(
    settings: Settings, make_delivery: Any, fire: Any, mailbox: Mailbox, database: SyncDB, clock: ManualClock
) -> None:
    """Invariant 7: what one sender has in hand waits; the other sends all the rest, in order, meanwhile."""
    shared = Outbox(database=database, clock=clock)
    mailbox.stall("RCPT", seconds=600, times=1)
    (stuck,) = fire("stuck@example.com")
    hanging = make_delivery(shared, SmtpMailer(settings, step_seconds=600.0))
    thread = Thread(target=deliver, args=[hanging], daemon=True)
    thread.start()
    wait_until(lambda: mailbox.connections)
    wait_until(lambda: notification(database, stuck).get("claim"))
    others = [f"user{number}@example.com" for number in range(60)]
    fire(*others)
    drain(make_delivery(shared))
    assert [mail.recipient for mail in mailbox.mails] == others
    assert notification(database, stuck)["state"] == "pending"
    mailbox.close_connections()
    thread.join()


def test_no_text_is_handed_over_before_the_last_mail_is_recorded(
    database: SyncDB, make_delivery: Any, fire: Any, mailbox: Mailbox, clock: ManualClock
) -> None:
    """Invariant 3: a crash leaves one mail of a sender in doubt, never two."""
    ids = fire(*[f"user{number}@example.com" for number in range(3)])
    shared = Outbox(database=database, clock=clock)
    claimed = shared.take()
    assert claimed is not None
    shared.give_back(claimed)
    delivery = make_delivery(shared, record_seconds=0.2)
    with failing(database, "update"):
        with pytest.raises(UnrecordedError):
            deliver(delivery)
        with pytest.raises(UnrecordedError):
            deliver(delivery)
        assert [mail.recipient for mail in mailbox.mails] == ["user0@example.com"]
    wait_until(lambda: notification(database, ids[0])["state"] == "sent")
    drain(delivery)
    assert [mail.recipient for mail in mailbox.mails] == [f"user{number}@example.com" for number in range(3)]
    assert database.alerts.count_documents({"notification.state": "sent"}) == 3


def test_every_record_is_made_safe_with_a_majority(
    mongo_url: str, database_name: str, make_delivery: Any, fire: Any, clock: ManualClock
) -> None:
    """A record that only the primary has is lost with it, and its mail repeated."""
    ids = fire(*[f"user{number}@example.com" for number in range(60)])
    safe: set[ObjectId] = set()

    class Writes(CommandListener):
        def started(self, event: CommandStartedEvent) -> None:
            if event.command_name == "update" and event.command["writeConcern"]["w"] == "majority":
                for update in event.command["updates"]:
                    if update["u"].get("$set", {}).get("notification.state") == "sent":
                        safe.update(update["q"]["_id"]["$in"])

        def succeeded(self, event: CommandSucceededEvent) -> None: ...

        def failed(self, event: CommandFailedEvent) -> None: ...

    with MongoClient[Document](mongo_url, event_listeners=[Writes()], **OPTIONS) as client:
        shared = Outbox(database=client[database_name], clock=clock)
        drain(make_delivery(shared))
        shared.close()
    assert safe == set(ids)


@pytest.mark.parametrize(
    "reply", ["550 5.1.1 no such user", "553 5.1.3 bad address", "551 moved", "554 5.7.1 rejected"]
)
def test_a_permanent_refusal_is_shown_and_never_holds_up_the_rest(
    database: SyncDB, make_delivery: Any, fire: Any, mailbox: Mailbox, clock: ManualClock, reply: str
) -> None:
    """Invariant 7."""
    mailbox.refuse("nobody@example.com", reply)
    refused, taken = fire("nobody@example.com", "alice@example.com")
    delivery = make_delivery()
    deliver(delivery)
    assert [mail.recipient for mail in mailbox.mails] == ["alice@example.com"]
    state = notification(database, refused)
    assert (state["state"], state["attempts"], state["error"]) == ("failed", 1, reply)
    assert notification(database, taken)["state"] == "sent"
    clock.advance(7 * 86_400)
    assert deliver(delivery) == 0


@pytest.mark.parametrize(
    "reply",
    ["451 4.7.1 greylisted", "450 4.2.1 busy", "452 4.5.3 too many", "550 5.4.5 daily quota", "552 5.2.2 mailbox full"],
)
def test_a_temporary_refusal_is_retried_with_back_off_until_it_is_taken(
    database: SyncDB, make_delivery: Any, fire: Any, mailbox: Mailbox, clock: ManualClock, reply: str
) -> None:
    mailbox.refuse("alice@example.com", reply, times=3)
    (alert_id,) = fire("alice@example.com")
    delivery = make_delivery()
    waits = []
    for attempt in (1, 2, 3):
        assert deliver(delivery) == 1
        state = notification(database, alert_id)
        assert (state["state"], state["attempts"], state["error"]) == ("pending", attempt, reply)
        waits.append((state["due_at"] - clock.now()).total_seconds())
        assert deliver(delivery) == 0
        clock.advance(waits[-1])
    assert deliver(delivery) == 1
    assert notification(database, alert_id)["state"] == "sent"
    assert [22.5 <= waits[0] <= 30, 45 <= waits[1] <= 60, 90 <= waits[2] <= 120] == [True] * 3
    assert len(mailbox.mails) == 1


def test_temporary_refusals_after_data_count_the_same(
    database: SyncDB, make_delivery: Any, fire: Any, mailbox: Mailbox, clock: ManualClock
) -> None:
    mailbox.refuse_data("451 4.3.0 local error", times=1)
    (alert_id,) = fire("alice@example.com")
    delivery = make_delivery()
    deliver(delivery)
    assert notification(database, alert_id)["error"] == "451 4.3.0 local error"
    clock.advance(30)
    deliver(delivery)
    assert notification(database, alert_id)["state"] == "sent"


def test_a_recipient_refused_for_a_day_is_given_up_with_the_last_words(
    database: SyncDB, make_delivery: Any, fire: Any, mailbox: Mailbox, clock: ManualClock
) -> None:
    mailbox.refuse("alice@example.com", "451 4.7.1 greylisted")
    (alert_id,) = fire("alice@example.com")
    delivery = make_delivery()
    began = clock.now()
    while notification(database, alert_id)["state"] == "pending":
        deliver(delivery)
        clock.advance(3600)
        assert clock.now() - began < timedelta(hours=48)
    assert clock.now() - began >= timedelta(hours=24)
    state = notification(database, alert_id)
    assert state["state"] == "failed"
    assert state["error"].endswith("451 4.7.1 greylisted")


def test_no_outage_of_the_mail_server_makes_a_mail_fail(
    database: SyncDB, make_delivery: Any, fire: Any, mailbox: Mailbox, clock: ManualClock
) -> None:
    """Three days without a mail server: all are pending with the reason, then all arrive once."""
    ids = fire(*[f"user{number}@example.com" for number in range(5)])
    delivery = make_delivery()
    mailbox.stop()
    for _ in range(72):
        deliver(delivery)
        clock.advance(3600)
    states = [notification(database, alert_id) for alert_id in ids]
    assert {state["state"] for state in states} == {"pending"}
    assert any("can't be reached" in (state["error"] or "") for state in states)

    with Mailbox(port=mailbox.port) as revived:
        drain(delivery)
        assert sorted(mail.recipient for mail in revived.mails) == [f"user{number}@example.com" for number in range(5)]
        assert all("This notice is 3 d late" in str(mail.message) for mail in revived.mails)


def test_a_failing_mail_server_is_left_alone_for_ever_longer(
    make_delivery: Any, fire: Any, mailbox: Mailbox, clock: ManualClock
) -> None:
    fire(*[f"user{number}@example.com" for number in range(30)])
    mailbox.stop()
    delivery = make_delivery()
    assert deliver(delivery) == 1  # the others are put back untried
    assert deliver(delivery) == 0
    clock.advance(2)
    assert deliver(delivery) == 1
    clock.advance(2)
    assert deliver(delivery) == 0


def test_recipients_over_whom_the_server_breaks_off_starve_no_other(
    database: SyncDB, make_delivery: Any, fire: Any, mailbox: Mailbox, clock: ManualClock
) -> None:
    """Invariant 7: however many of them there are, and in front of the queue, the others' mails go out at once."""
    bad = [f"bad{number}@example.com" for number in range(8)]
    for address in bad:
        mailbox.refuse(address, "421 4.7.0 come back later")
    fire(*bad)
    (good,) = fire("alice@example.com")
    delivery = make_delivery()
    deliver(delivery)
    assert notification(database, good)["state"] == "sent"


def test_a_mail_that_was_put_back_keeps_its_place_in_the_queue(
    database: SyncDB, make_delivery: Any, fire: Any, mailbox: Mailbox, clock: ManualClock
) -> None:
    """With the server down only the first of a batch is tried; the next try is the next mail's, not the same one's."""
    ids = fire("first@example.com", "second@example.com")
    due_at = notification(database, ids[1])["due_at"]
    mailbox.stop()
    delivery = make_delivery()
    deliver(delivery)
    assert notification(database, ids[1])["due_at"] == due_at
    clock.advance(2)
    deliver(delivery)
    assert [notification(database, alert_id)["attempts"] for alert_id in ids] == [1, 1]


def test_a_server_that_thinks_long_about_a_mail_gets_it_once(
    database: SyncDB, settings: Settings, make_delivery: Any, fire: Any, mailbox: Mailbox
) -> None:
    """Scanners may take far longer over the whole mail than over any step before: that is no hang-up."""
    fire("alice@example.com")
    mailbox.stall("DATA", seconds=0.6, times=1)
    deliver(make_delivery(mailer=SmtpMailer(settings, step_seconds=0.2, accept_seconds=20.0)))
    assert [mail.recipient for mail in mailbox.mails] == ["alice@example.com"]
    assert database.alerts.count_documents({"notification.state": "sent"}) == 1


def test_a_day_without_a_try_is_no_days_refusals(
    database: SyncDB, make_delivery: Any, fire: Any, mailbox: Mailbox, clock: ManualClock
) -> None:
    """Greylisted once, then the service was down for a day: the next greylisting doesn't end it."""
    mailbox.refuse("alice@example.com", "451 4.7.1 greylisted", times=2)
    (alert_id,) = fire("alice@example.com")
    delivery = make_delivery()
    deliver(delivery)
    clock.advance(25 * 3600)
    deliver(delivery)
    assert notification(database, alert_id)["state"] == "pending"
    clock.advance(120)
    deliver(delivery)
    assert notification(database, alert_id)["state"] == "sent"


def test_greylisting_after_an_outage_waits_no_longer_for_it(
    database: SyncDB, make_delivery: Any, fire: Any, mailbox: Mailbox, clock: ManualClock
) -> None:
    """Tries that met no server don't lengthen the wait after a refusal."""
    (alert_id,) = fire("alice@example.com")
    delivery = make_delivery()
    mailbox.stop()
    for _ in range(10):
        deliver(delivery)
        clock.advance(60)
    with Mailbox(port=mailbox.port) as revived:
        revived.refuse("alice@example.com", "451 4.7.1 greylisted", times=1)
        deliver(delivery)
        assert notification(database, alert_id)["due_at"] <= clock.now() + timedelta(seconds=30)


@pytest.mark.parametrize("keep", [True, False])
def test_a_hang_up_after_data_holds_up_no_other_mail(
    database: SyncDB, make_delivery: Any, fire: Any, mailbox: Mailbox, clock: ManualClock, keep: bool
) -> None:
    """Invariants 3 and 7: nobody knows whether that mail was taken, so it is repeated under its Message-ID."""
    first, second = fire("alice@example.com", "bob@example.com")
    mailbox.hang_up_after_data(times=1, keep=keep)
    delivery = make_delivery()
    deliver(delivery)
    assert len(mailbox.to("bob@example.com")) == 1
    clock.advance(30)
    deliver(delivery)
    hers = mailbox.to("alice@example.com")
    assert len(hers) == (2 if keep else 1)
    assert len({mail.message["Message-ID"] for mail in hers}) == 1
    assert {notification(database, alert_id)["state"] for alert_id in (first, second)} == {"sent"}


def test_a_kept_connection_that_died_is_replaced_at_once(
    database: SyncDB, make_delivery: Any, fire: Any, mailbox: Mailbox
) -> None:
    delivery = make_delivery()
    fire("alice@example.com")
    deliver(delivery)
    mailbox.close_connections()
    (alert_id,) = fire("bob@example.com")
    deliver(delivery)
    assert notification(database, alert_id)["state"] == "sent"
    assert mailbox.connections == 2


def test_an_alert_that_cannot_be_made_into_a_mail_holds_up_no_other(
    database: SyncDB, make_delivery: Any, fire: Any, mailbox: Mailbox
) -> None:
    """Invariant 7: a document spoiled by hand stays pending and says so."""
    spoiled, sound = fire("alice@example.com", "bob@example.com")
    database.alerts.update_one({"_id": spoiled}, {"$set": {"symbol": "BTC\r\nBcc: eve@example.com"}})
    deliver(make_delivery())
    assert [mail.recipient for mail in mailbox.mails] == ["bob@example.com"]
    assert notification(database, spoiled)["error"] == "internal error: ValueError"
    assert notification(database, sound)["state"] == "sent"


def test_a_stop_puts_back_what_was_not_begun(
    database: SyncDB, make_delivery: Any, fire: Any, mailbox: Mailbox, clock: ManualClock
) -> None:
    ids = fire(*[f"user{number}@example.com" for number in range(10)])
    make_delivery().deliver_due(stopping=lambda: len(mailbox.mails) >= 3)
    assert [notification(database, alert_id)["state"] for alert_id in ids] == ["sent"] * 3 + ["pending"] * 7
    assert deliver(make_delivery()) == 7
    assert len(mailbox.mails) == 10


def test_a_mail_is_not_begun_when_its_lease_could_end_first(database: SyncDB, fire: Any, clock: ManualClock) -> None:
    """Slow mails use up the lease of what was claimed with them: it is claimed anew, else two could send it."""
    fire(*[f"user{number}@example.com" for number in range(4)])
    outbox = Outbox(database=database, clock=clock)
    for number in range(4):
        alert = outbox.take()
        assert alert is not None
        assert alert["email"] == f"user{number}@example.com"
        assert notification(database, alert["_id"])["due_at"] - clock.now() >= ONE_MAIL
        clock.advance(9)
    assert outbox.take() is None


def test_an_outcome_counts_only_for_who_holds_the_claim_but_sent_is_sent(
    database: SyncDB, fire: Any, clock: ManualClock
) -> None:
    """A sender that overran its lease can't fail or defer what another holds; that it sent it remains true."""
    (alert_id,) = fire("alice@example.com")
    (overran,), (holds,) = (
        notifications.claim_due(database, now=clock.now() + delay, lease=LEASE, limit=5)
        for delay in (timedelta(0), 2 * LEASE)
    )
    now = clock.now()
    assert not notifications.mark_failed(database, overran, error="late")
    assert not notifications.mark_refused(database, overran, error="late", due_at=now, since=now)
    assert not notifications.mark_untaken(database, overran, error="late", due_at=now)
    assert notifications.mark_sent(database, [alert_id], now=now) == 1
    assert notifications.mark_sent(database, [alert_id], now=now) == 0
    assert not notifications.mark_failed(database, holds, error="too late")


def test_a_database_of_ones_own_has_no_claims_to_wait_for(database: SyncDB, fire: Any, clock: ManualClock) -> None:
    fire("a@example.com", "b@example.com", "c@example.com")

    def claim() -> int:
        return len(notifications.claim_due(database, now=clock.now(), lease=LEASE, limit=5))

    assert (claim(), claim()) == (3, 0)
    notifications.release_all(database, now=clock.now())
    assert claim() == 3
