"""Queries on the outbox: the `notification` of a fired alert, `{state, attempts, due_at?, claim?, sent_at, error,
refusals?, refused_since?}`.

`due_at` exists as long as the mail is owed: it says when to try next, and while a sender holds the mail, when its lease
ends and anybody may try. `state` is `pending`, `sent` or `failed`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from bson import ObjectId
from pymongo import ASCENDING, UpdateOne, WriteConcern

from app.database.client import IN_OUTBOX, AsyncDB, Document, SyncDB

DONE = {
    "notification.due_at": "",
    "notification.claim": "",
    "notification.refused_since": "",
    "notification.refusals": "",
}


FOR_A_MAIL = (
    *("email", "symbol", "coin_id", "direction", "target", "currentPrice", "created_at"),
    *("triggered_at", "triggered_until", "triggered_price", "triggered_source", "triggered_pair", "notification"),
)
"""The fields of an alert that its mail is made of."""
AT_ONCE = WriteConcern(w=1)
"""Acknowledged once it is written, before it is safe from MongoDB's own death."""


@dataclass(frozen=True, slots=True)
class QueueState:
    """How many mails are owed, when the longest-waiting one was fired, and what keeps one of them waiting (or None)."""

    length: int
    oldest_fired_at: datetime | None
    error: str | None


def claim_due(database: SyncDB, *, now: datetime, lease: timedelta, limit: int) -> list[Document]:
    """Claim up to `limit` fired alerts whose mail is due, longest due first; returns them, as far as a mail needs them.

    They tell the `due_at` of before the claim, which is where `release` puts them back to. Of several senders that
    reach for the same one, exactly one gets it.
    """
    due = {"notification.due_at": {"$lte": now}}
    found = list(database.alerts.find(due, FOR_A_MAIL).sort("notification.due_at", ASCENDING).limit(limit))
    if not found:
        return []
    claim, ids = ObjectId(), [alert["_id"] for alert in found]
    mine = {"$set": {"notification.due_at": now + lease, "notification.claim": claim}}
    if database.alerts.update_many({"_id": {"$in": ids}, **due}, mine).modified_count < len(ids):
        ours = set(database.alerts.distinct("_id", {"_id": {"$in": ids}, "notification.claim": claim}))
        found = [alert for alert in found if alert["_id"] in ours]
    for alert in found:
        alert["notification"]["claim"] = claim
    return found


def mark_sent(database: SyncDB, alert_ids: Sequence[ObjectId], *, now: datetime, durably: bool = True) -> int:
    """Record that the mail server took the mails, whoever holds their claims by now; returns how many were new.

    Running it again changes nothing. `durably` waits for a majority: for these, and for all that was written before.
    """
    sent = {
        "$set": {"notification.state": "sent", "notification.sent_at": now, "notification.error": None},
        "$inc": {"notification.attempts": 1},
        "$unset": DONE,
    }
    alerts = database.alerts if durably else database.get_collection("alerts", write_concern=AT_ONCE)
    return alerts.update_many({"_id": {"$in": list(alert_ids)}, **IN_OUTBOX}, sent).modified_count


def mark_failed(database: SyncDB, alert: Document, *, error: str) -> bool:
    """Give the mail up for good, with the mail server's words."""
    failed = {
        "$set": {"notification.state": "failed", "notification.error": error},
        "$inc": {"notification.attempts": 1},
        "$unset": DONE,
    }
    return _update_claimed(database, alert, failed)


def mark_refused(database: SyncDB, alert: Document, *, error: str, due_at: datetime, since: datetime) -> bool:
    """Put a mail that this recipient, or the server over it, did not take back until `due_at`.

    `since` is when that happened first.
    """
    update = {
        "$set": {"notification.due_at": due_at, "notification.error": error, "notification.refused_since": since},
        "$inc": {"notification.attempts": 1, "notification.refusals": 1},
        "$unset": {"notification.claim": ""},
    }
    return _update_claimed(database, alert, update)


def mark_untaken(database: SyncDB, alert: Document, *, error: str, due_at: datetime) -> bool:
    """Put a mail that met no working mail server back until `due_at`: nothing was said about its recipient."""
    update = {
        "$set": {"notification.due_at": due_at, "notification.error": error},
        "$inc": {"notification.attempts": 1},
        "$unset": {"notification.claim": ""},
    }
    return _update_claimed(database, alert, update)


def release(database: SyncDB, alerts: Iterable[Document]) -> None:
    """Put mails that are still held under their claim back, untried, to the place in the queue that they came from."""
    updates = [
        UpdateOne(
            _held(alert),
            {"$set": {"notification.due_at": alert["notification"]["due_at"]}, "$unset": {"notification.claim": ""}},
        )
        for alert in alerts
    ]
    if updates:
        database.alerts.bulk_write(updates, ordered=False)


def release_all(database: SyncDB, *, now: datetime) -> None:
    """Make every mail that was claimed due: for a database that no other sender can have."""
    database.alerts.update_many(
        {**IN_OUTBOX, "notification.claim": {"$exists": True}},
        {"$set": {"notification.due_at": now}, "$unset": {"notification.claim": ""}},
    )


async def queue_state(database: AsyncDB) -> QueueState:
    """Return how long the outbox is and how long its oldest mail has waited."""
    groups = await database.alerts.aggregate(
        [
            {"$match": IN_OUTBOX},
            {
                "$group": {
                    "_id": None,
                    "length": {"$sum": 1},
                    "oldest": {"$min": "$fired_at"},
                    "error": {"$max": "$notification.error"},
                }
            },
        ]
    )
    rows = await groups.to_list()
    return QueueState(rows[0]["length"], rows[0]["oldest"], rows[0]["error"]) if rows else QueueState(0, None, None)


def _update_claimed(database: SyncDB, alert: Document, update: Document) -> bool:
    return database.alerts.update_one(_held(alert), update).modified_count == 1


def _held(alert: Document) -> Document:
    """The alert, as long as it is held under the claim that it came with."""
    return {"_id": alert["_id"], "notification.claim": alert["notification"]["claim"]}
