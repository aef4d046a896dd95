"""Queries on the outbox: the `notification` of a fired alert, `{state, attempts, due_at?, claim?, sent_at, error,
refusals?, refused_since?}`.

`due_at` exists as long as the mail is owed: it says when to try next, and while a sender holds the mail, when its lease
ends and anybody may try. `state` is `pending`, `sent` or `failed`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from bson import ObjectId
from pymongo import ASCENDING, UpdateOne

from app.database.client import IN_OUTBOX, AsyncDB, Document, SyncDB

DONE = {
    "notification.due_at": "",
    "notification.claim": "",
    "notification.refused_since": "",
    "notification.refusals": "",
}


@dataclass(frozen=True, slots=True)
class QueueState:
    """How many mails are owed, when the longest-waiting one was fired, and what keeps one of them waiting (or None)."""

    length: int
    oldest_fired_at: datetime | None
    error: str | None


def claim_due(database: SyncDB, *, now: datetime, lease: timedelta, limit: int) -> tuple[ObjectId, list[Document]]:
    """Claim up to `limit` fired alerts whose mail is due, longest due first; returns the claim's token and the alerts.

    The alerts tell the `due_at` of before the claim, which is where `release` puts them back to. Of several senders
    that reach for the same one, exactly one gets it.
    """
    claim = ObjectId()
    due = {"notification.due_at": {"$lte": now}}
    wanted = {"notification.due_at": 1}
    found = list(database.alerts.find(due, wanted).sort("notification.due_at", ASCENDING).limit(limit))
    due_at = {alert["_id"]: alert["notification"]["due_at"] for alert in found}
    if not due_at:
        return claim, []
    ids = list(due_at)
    database.alerts.update_many(
        {"_id": {"$in": ids}, **due}, {"$set": {"notification.due_at": now + lease, "notification.claim": claim}}
    )
    claimed = {
        alert["_id"]: alert for alert in database.alerts.find({"_id": {"$in": ids}, "notification.claim": claim})
    }
    for alert_id, alert in claimed.items():
        alert["notification"]["due_at"] = due_at[alert_id]
    return claim, [claimed[alert_id] for alert_id in ids if alert_id in claimed]


def mark_sent(database: SyncDB, alert_id: ObjectId, *, now: datetime) -> bool:
    """Record that the mail server took the mail, whoever holds the claim by now; False if that was known already."""
    sent = {
        "$set": {"notification.state": "sent", "notification.sent_at": now, "notification.error": None},
        "$inc": {"notification.attempts": 1},
        "$unset": DONE,
    }
    return database.alerts.update_one({"_id": alert_id, **IN_OUTBOX}, sent).modified_count == 1


def mark_failed(database: SyncDB, alert_id: ObjectId, claim: ObjectId, *, error: str) -> bool:
    """Give the mail up for good, with the mail server's words."""
    failed = {
        "$set": {"notification.state": "failed", "notification.error": error},
        "$inc": {"notification.attempts": 1},
        "$unset": DONE,
    }
    return _update_claimed(database, alert_id, claim, failed)


def mark_refused(
    database: SyncDB, alert_id: ObjectId, claim: ObjectId, *, error: str, due_at: datetime, since: datetime
) -> bool:
    """Put a mail that this recipient, or the server over it, did not take back until `due_at`.

    `since` is when that happened first.
    """
    update = {
        "$set": {"notification.due_at": due_at, "notification.error": error, "notification.refused_since": since},
        "$inc": {"notification.attempts": 1, "notification.refusals": 1},
        "$unset": {"notification.claim": ""},
    }
    return _update_claimed(database, alert_id, claim, update)


def mark_untaken(database: SyncDB, alert_id: ObjectId, claim: ObjectId, *, error: str, due_at: datetime) -> bool:
    """Put a mail that met no working mail server back until `due_at`: nothing was said about its recipient."""
    update = {
        "$set": {"notification.due_at": due_at, "notification.error": error},
        "$inc": {"notification.attempts": 1},
        "$unset": {"notification.claim": ""},
    }
    return _update_claimed(database, alert_id, claim, update)


def release(database: SyncDB, alerts: Sequence[Document], claim: ObjectId) -> None:
    """Put mails that are still held under `claim` back, untried, to the place in the queue that they came from."""
    database.alerts.bulk_write(
        [
            UpdateOne(
                {"_id": alert["_id"], "notification.claim": claim},
                {
                    "$set": {"notification.due_at": alert["notification"]["due_at"]},
                    "$unset": {"notification.claim": ""},
                },
            )
            for alert in alerts
        ],
        ordered=False,
    )


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


def _update_claimed(database: SyncDB, alert_id: ObjectId, claim: ObjectId, update: Document) -> bool:
    mine = {"_id": alert_id, "notification.claim": claim}
    return database.alerts.update_one(mine, update).modified_count == 1
