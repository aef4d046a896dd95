"""Queries of the web side on `alerts`. Each one is scoped to one user (invariant 8).

An alert: `{_id, user_id, email, status, symbol, coin_id, direction, directions, touch, target, currentPrice,
created_at, triggered_at, triggered_until?, triggered_price, triggered_source, triggered_pair?, fired_at, deleted_at,
notification, unsettled?}`.

`directions` lists those that the alert may still fire in: both until the first price settles it. `triggered_at` to
`triggered_until` is when the market touched the target (a poll's instant, a candle's minute), `fired_at` when this
service noticed. `notification` is the alert's place in the outbox: see `notifications.py`.
"""

from collections.abc import Sequence
from datetime import datetime

from bson import ObjectId
from pymongo import DESCENDING, ReturnDocument
from pymongo.errors import BulkWriteError, DuplicateKeyError, OperationFailure

from app.database.client import LIVE, AsyncDB, Document
from app.errors import ConflictError, NotFoundError
from app.models import AlertStatus, Direction

NEWEST_FIRST = [("created_at", DESCENDING), ("_id", DESCENDING)]
DUPLICATE_KEY = 11000
PUBLIC = (
    *("status", "symbol", "coin_id", "direction", "touch", "target", "currentPrice", "email", "created_at"),
    *("triggered_at", "triggered_price", "triggered_source", "deleted_at", "notification"),
)


def new_alert(
    *,
    user_id: ObjectId,
    email: str,
    coin: Document,
    target: float,
    direction: Direction | None,
    touch: bool,
    current_price: float | None,
    now: datetime,
) -> Document:
    """Return an alert that is not stored yet. Without `current_price` it waits for the first price to settle it."""
    alert: Document = {
        "_id": ObjectId(),
        "user_id": user_id,
        "email": email,
        "status": "created",
        "symbol": coin["symbol"],
        "coin_id": coin["_id"],
        "direction": direction,
        "directions": [direction] if direction else ["above", "below"],
        "touch": touch,
        "target": target,
        "currentPrice": current_price,
        "created_at": now,
        "triggered_at": None,
        "triggered_price": None,
        "triggered_source": None,
        "fired_at": None,
        "deleted_at": None,
        "notification": None,
    }
    if current_price is None:
        alert["unsettled"] = True
    return alert


async def insert_alerts(database: AsyncDB, batch: Sequence[Document]) -> list[bool]:
    """Store new alerts, and tell for each whether that was done.

    It was not where a live alert already claims this user, coin, direction and target; the unique index decides between
    simultaneous requests. Raises PyMongoError if some or all could not be stored for any other reason.
    """
    try:
        if len(batch) == 1:  # costs a third less than the same as a bulk
            await database.alerts.insert_one(batch[0])
        else:
            await database.alerts.insert_many(batch, ordered=False)
    except DuplicateKeyError:
        return [False]
    except BulkWriteError as error:
        refused = {each["index"] for each in error.details["writeErrors"] if each["code"] == DUPLICATE_KEY}
        if len(refused) < len(error.details["writeErrors"]) + len(error.details["writeConcernErrors"]):
            raise OperationFailure("new alerts could not be stored") from error
        return [index not in refused for index in range(len(batch))]
    return [True] * len(batch)


async def restate_alert(
    database: AsyncDB, alert: Document, *, now: datetime, price: float, direction: Direction | None
) -> None:
    """Make a live alert one that was created `now` at `price`; one that fired or was deleted meanwhile stays as it is.

    Raises ConflictError, and takes the alert back, where that makes it the twin of another live one.
    """
    changes = {"created_at": now, "currentPrice": price, "direction": direction, "directions": [direction]}
    live = {"_id": alert["_id"], **LIVE}
    try:
        changed = await database.alerts.update_one(live, {"$set": changes, "$unset": {"unsettled": ""}})
    except DuplicateKeyError as error:
        await database.alerts.delete_one(live)
        raise await twin_error(database, alert | changes) from error
    if changed.modified_count:
        alert.update(changes)


async def count_live(database: AsyncDB, *, user_id: ObjectId, limit: int) -> int:
    """Count the user's live alerts, giving up at `limit`."""
    return await database.alerts.count_documents({"user_id": user_id, **LIVE}, limit=limit, hint="one_live")


async def delete_alert(database: AsyncDB, *, user_id: ObjectId, alert_id: str, now: datetime) -> Document:
    """Delete a live alert and return it; one that is deleted already is returned unchanged.

    A delete and a firing at the same instant are two conditional writes on one document: exactly one wins.
    Raises NotFoundError for an alert that isn't the user's, ConflictError for one that has fired.
    """
    mine = {"_id": _object_id(alert_id), "user_id": user_id}
    alert = await database.alerts.find_one_and_update(
        {**mine, **LIVE},
        {"$set": {"status": "deleted", "deleted_at": now}, "$unset": {"unsettled": ""}},
        return_document=ReturnDocument.AFTER,
    )
    alert = alert or await find_alert(database, user_id=user_id, alert_id=alert_id)
    if alert["status"] == "triggered":
        raise ConflictError(
            f"Alert {alert_id} has status 'triggered': it fired when {alert['symbol']} was seen at "
            f"{alert['triggered_price']} USD on {alert['triggered_at'].isoformat()}, so it can't be deleted any more."
        )
    return alert


async def find_alert(database: AsyncDB, *, user_id: ObjectId, alert_id: str) -> Document:
    """Return the user's alert with this id, whatever its status. Raises NotFoundError for one that isn't theirs."""
    alert = await database.alerts.find_one({"_id": _object_id(alert_id), "user_id": user_id})
    if alert is None:
        raise _unknown(alert_id)
    return alert


async def find_page(
    database: AsyncDB, *, user_id: ObjectId, statuses: Sequence[AlertStatus], skip: int, limit: int
) -> list[Document]:
    """Return some of the user's alerts, newest first, with the fields that their owner sees; no status means any."""
    wanted = _of_user(user_id, statuses)
    return await database.alerts.find(wanted, PUBLIC).sort(NEWEST_FIRST).skip(skip).limit(limit).to_list()


async def count_with_status(database: AsyncDB, *, user_id: ObjectId, statuses: Sequence[AlertStatus]) -> int:
    """Count the user's alerts in one of these states; live ones alone off an index, others by looking at each."""
    if tuple(statuses) == ("created",):
        return await database.alerts.count_documents({"user_id": user_id, **LIVE}, hint="one_live")
    return await database.alerts.count_documents(_of_user(user_id, statuses))


async def count_created(
    database: AsyncDB, *, user_id: ObjectId, after: datetime | None = None, until: datetime | None = None
) -> int:
    """Count the user's alerts by when they were created, off the index alone."""
    span = {"$gt": after} if after else {"$lte": until}
    return await database.alerts.count_documents({"user_id": user_id, "created_at": span}, hint="newest_first")


def _of_user(user_id: ObjectId, statuses: Sequence[AlertStatus]) -> Document:
    return {"user_id": user_id, "status": {"$in": list(statuses)}} if statuses else {"user_id": user_id}


def _object_id(alert_id: str) -> ObjectId:
    if not ObjectId.is_valid(alert_id):
        raise _unknown(alert_id)
    return ObjectId(alert_id)


def _unknown(alert_id: str) -> NotFoundError:
    return NotFoundError(f"You have no alert with the id {alert_id!r}.")


async def twin_error(database: AsyncDB, alert: Document) -> ConflictError:
    """Say which live alert claims what a new one wants."""
    claim = {
        "user_id": alert["user_id"],
        "coin_id": alert["coin_id"],
        "target": alert["target"],
        "directions": {"$in": alert["directions"]},
    }
    twin = await database.alerts.find_one(claim | LIVE, {"_id": 1})
    named = f"alert {twin['_id']}" if twin else "another request"
    return ConflictError(
        f"You already have a live alert for {alert['symbol']} at this price and direction: {named}. "
        "Delete it first, or choose another target."
    )
